//! Typed access to a JSON document that remembers where it is, so that every error names the
//! field by its path and shows the value.
//!
//! Invariant: a JSON `null` is an absent field, as it is for the Go programs that write these
//! documents. Nothing here panics, whatever the document.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ConfigError;

/// Longest value an error message shows, in characters.
const SHOWN_CHARS: usize = 120;

/// Fields whose values no error shows.
const SECRETS: [&str; 2] = ["etcd_password", "policy.k8s_auth_token"];

/// An object of the document and its path.
#[derive(Debug, Clone)]
pub(crate) struct Object<'v> {
    path: String,
    map: &'v Map<String, Value>,
}

/// A value of the document and its path.
#[derive(Debug, Clone)]
pub(crate) struct Field<'v> {
    path: String,
    value: &'v Value,
}

impl<'v> Object<'v> {
    pub(crate) fn root(map: &'v Map<String, Value>) -> Self {
        Self { path: String::new(), map }
    }

    /// Full path of `key` in this object.
    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Field<'v>> {
        let value = self.map.get(key).filter(|value| !value.is_null())?;
        Some(Field { path: self.path_of(key), value })
    }

    /// A field whose name may be in any case, as it may for Go's decoder. containerd relies on that:
    /// it writes `HostPort`.
    pub(crate) fn get_in_any_case(&self, key: &str) -> Option<Field<'v>> {
        let is_it = |(name, _): &(&str, Field<'v>)| name.eq_ignore_ascii_case(key);
        self.fields().find(is_it).map(|(_, field)| field)
    }

    /// Every field that is there, in the document's order.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&'v str, Field<'v>)> + '_ {
        self.map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.as_str(), Field { path: self.path_of(key), value }))
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Object<'v>>, ConfigError> {
        self.get(key).map(|field| field.object()).transpose()
    }

    /// A string; an empty one is an absent one.
    pub(crate) fn string(&self, key: &str) -> Result<Option<&'v str>, ConfigError> {
        let text = self.get(key).map(|field| field.string()).transpose()?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.get(key).map(|field| field.boolean()).transpose()
    }

    pub(crate) fn integer(
        &self,
        key: &str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, ConfigError> {
        self.get(key).map(|field| field.integer(range)).transpose()
    }

    /// The items of a list; an absent list is an empty one.
    pub(crate) fn list(&self, key: &str) -> Result<Vec<Field<'v>>, ConfigError> {
        Ok(self.get(key).map(|field| field.list()).transpose()?.unwrap_or_default())
    }

    pub(crate) fn missing(&self, key: &str, reason: &'static str) -> ConfigError {
        ConfigError::Missing { field: self.path_of(key), reason }
    }
}

impl<'v> Field<'v> {
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn value(&self) -> &'v Value {
        self.value
    }

    pub(crate) fn object(&self) -> Result<Object<'v>, ConfigError> {
        let map = self.value.as_object().ok_or_else(|| self.invalid("must be an object"))?;
        Ok(Object { path: self.path.clone(), map })
    }

    pub(crate) fn string(&self) -> Result<&'v str, ConfigError> {
        self.value.as_str().ok_or_else(|| self.invalid("must be a string"))
    }

    /// `true`, `false`, or those words as a string: Calico's `assign_ipv4` is `"true"`.
    pub(crate) fn boolean(&self) -> Result<bool, ConfigError> {
        match self.value {
            Value::Bool(truth) => Ok(*truth),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            _ => Err(self.invalid("must be true or false")),
        }
    }

    pub(crate) fn integer(&self, range: RangeInclusive<u32>) -> Result<u32, ConfigError> {
        self.value
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let (least, most) = (range.start(), range.end());
                self.invalid(format!("must be a whole number from {least} to {most}"))
            })
    }

    pub(crate) fn list(&self) -> Result<Vec<Field<'v>>, ConfigError> {
        let items = self.value.as_array().ok_or_else(|| self.invalid("must be a list"))?;
        Ok(items
            .iter()
            .enumerate()
            .map(|(index, value)| Field { path: format!("{}[{index}]", self.path), value })
            .collect())
    }

    /// A string that parses.
    pub(crate) fn parse<T: std::str::FromStr>(&self, wanted: &str) -> Result<T, ConfigError> {
        self.string()?.parse().map_err(|_| self.invalid(wanted))
    }

    pub(crate) fn invalid(&self, reason: impl Into<String>) -> ConfigError {
        ConfigError::Invalid {
            field: self.path.clone(),
            value: self.shown(),
            reason: reason.into(),
        }
    }

    pub(crate) fn unsupported(&self, reason: &'static str) -> ConfigError {
        ConfigError::Unsupported { field: self.path.clone(), value: self.shown(), reason }
    }

    /// The value as JSON, cut where it gets long.
    fn shown(&self) -> String {
        match SECRETS.contains(&self.path.as_str()) {
            true => "…".to_owned(),
            false => shortened(&self.value.to_string()),
        }
    }
}

/// A text cut where it gets long.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
