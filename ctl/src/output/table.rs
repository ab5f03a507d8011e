//! A table for people: columns aligned, no lines drawn.

use std::fmt;

use anstyle::Style;

use super::{BOLD, DIM, PLAIN};

/// Between two columns.
const GAP: &str = "   ";
/// What an empty cell shows.
const NOTHING: &str = "-";

/// A table in the making.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// What is at one place of a table.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    style: Style,
    is_number: bool,
}

impl Cell {
    /// Text in a style.
    pub(crate) fn styled(text: impl fmt::Display, style: Style) -> Self {
        Self { text: text.to_string(), style, is_number: false }
    }

    /// A number, aligned to the right.
    pub(crate) fn number(number: impl fmt::Display) -> Self {
        Self { is_number: true, ..Self::styled(number, PLAIN) }
    }

    /// Text, or a dash for nothing.
    pub(crate) fn optional(text: Option<impl fmt::Display>) -> Self {
        text.map_or_else(|| Self::from(String::new()), |text| Self::styled(text, PLAIN))
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::styled(text, PLAIN)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::styled(text, PLAIN)
    }
}

impl Table {
    pub(crate) fn new<const COLUMNS: usize>(headings: [&'static str; COLUMNS]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// A row; a cell with nothing in it shows as a dash. What comes from elsewhere loses its control
    /// characters, which a terminal would obey.
    pub(crate) fn row<const COLUMNS: usize>(&mut self, cells: [Cell; COLUMNS]) {
        let printable = |mut cell: Cell| {
            cell.text = super::printable(&cell.text);
            if cell.text.is_empty() { Cell::styled(NOTHING, DIM) } else { cell }
        };
        self.rows.push(cells.into_iter().map(printable).collect());
    }

    fn widths(&self) -> Vec<usize> {
        let headings = self.headings.iter().map(|heading| heading.chars().count()).collect();
        self.rows.iter().fold(headings, |mut widths: Vec<usize>, row| {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
            widths
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headings = self.headings.iter().filter(|heading| !heading.is_empty());
        let headings: Vec<Cell> = headings.map(|heading| Cell::styled(heading, BOLD)).collect();
        let widths = self.widths();
        // Without headings the rows speak for themselves.
        for row in Some(&headings).filter(|row| !row.is_empty()).into_iter().chain(&self.rows) {
            for (column, cell) in row.iter().enumerate() {
                let is_last = column + 1 == row.len();
                let room = " ".repeat(widths[column] - cell.width());
                let style = cell.style;
                let text = &cell.text;
                match (cell.is_number, is_last) {
                    (true, _) => write!(f, "{room}{style}{text}{style:#}")?,
                    (false, true) => write!(f, "{style}{text}{style:#}")?,
                    (false, false) => write!(f, "{style}{text}{style:#}{room}")?,
                }
                f.write_str(if is_last { "\n" } else { GAP })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_whatever_its_style() {
        let mut table = Table::new(["NAME", "COUNT", "LAST"]);
        table.row([Cell::styled("a", BOLD), Cell::number(1000), "x".into()]);
        table.row(["longer".into(), Cell::number(7), Cell::optional(None::<u8>)]);

        let text = anstream::adapter::strip_str(&table.to_string()).to_string();

        assert_eq!(text, "NAME     COUNT   LAST\na         1000   x\nlonger       7   -\n");
    }

    #[test]
    fn a_name_cannot_speak_to_the_terminal() {
        let mut table = Table::new(["NAME"]);
        table.row(["\u{1b}[2Jred\n".into()]);

        assert!(table.to_string().ends_with("[2Jred\n"));
    }
}
