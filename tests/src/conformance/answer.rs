//! What a plugin answered, held against what it should have.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::CniOutput;

/// The error that a plugin answered with.
pub(super) struct Refusal {
    pub(super) code: u64,
    /// Message and details.
    pub(super) text: String,
    pub(super) document: Value,
}

/// The answer of a verb that has to succeed; null where it prints nothing.
pub(super) fn success(output: &CniOutput, what: &str) -> Result<Value> {
    ensure!(output.exit_code() == Some(0), "{what} failed: {}{}", output.stdout(), output.stderr());
    if output.stdout().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&output.stdout()).with_context(|| format!("{what}: stdout is no JSON"))
}

/// A success that has nothing to say.
pub(super) fn silent_success(output: &CniOutput, what: &str) -> Result<()> {
    success(output, what)?;
    let stdout = output.stdout();
    ensure!(stdout.trim().is_empty(), "{what} printed {stdout}");
    Ok(())
}

/// The error of a verb that has to fail.
pub(super) fn refusal(output: &CniOutput, what: &str) -> Result<Refusal> {
    match output.exit_code() {
        Some(0) => bail!("{what} succeeded"),
        Some(_) => {}
        None => bail!("{what} was ended by a signal: {}", output.stderr()),
    }
    let stdout = output.stdout();
    let document: Value = serde_json::from_str(&stdout)
        .with_context(|| format!("{what}: no error JSON on stdout, but {stdout:?}"))?;
    let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
    let code = document["code"].as_u64();
    Ok(Refusal {
        code: code.with_context(|| format!("{what}: no numeric code in {stdout}"))?,
        text: format!("{} {}", text("msg"), text("details")),
        document,
    })
}

impl Refusal {
    /// The code must be one of these, and the message must name the thing.
    pub(super) fn expect(&self, what: &str, codes: &[u64], named: &str) -> Result<()> {
        let Self { code, text, .. } = self;
        ensure!(codes.contains(code), "{what}: code {code}, not {codes:?}: {text}");
        ensure!(text.contains(named), "{what}: the message does not name {named}: {text}");
        Ok(())
    }
}
