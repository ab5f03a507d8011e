//! The smallest backend that keeps the contract: a map and a history behind one lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::{
    Along, Backend, BackendError, Event, Revision, Unchanged, Versioned, Watch, Write, check_prefix,
};

/// A store that lives as long as its last clone.
#[derive(Clone, Default)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    records: BTreeMap<String, Versioned>,
    history: Vec<Event>,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_revision(&self) -> Revision {
        Revision(self.history.len() as u64 + 1)
    }

    fn expect(&self, key: &str, expected: Option<Revision>) -> Result<(), BackendError> {
        match self.records.get(key) {
            None => Err(BackendError::NotFound { key: key.to_owned() }),
            Some(current) if expected.is_some_and(|expected| expected != current.revision) => {
                Err(BackendError::Conflict { key: key.to_owned() })
            }
            Some(_) => Ok(()),
        }
    }

    /// What is gone already is not removed.
    fn set(&mut self, key: &str, value: Option<&[u8]>) -> Revision {
        let (revision, key) = (self.next_revision(), key.to_owned());
        if let Some(value) = value {
            let versioned = Versioned { key: key.clone(), value: value.to_vec(), revision };
            self.records.insert(key, versioned.clone());
            self.history.push(Event::Put(versioned));
        } else if self.records.remove(&key).is_some() {
            self.history.push(Event::Delete { key, revision });
        }
        revision
    }
}

impl Backend for Memory {
    fn get(&self, key: &str) -> Result<Option<Versioned>, BackendError> {
        Ok(self.state().records.get(key).cloned())
    }

    fn write_if(
        &self,
        key: &str,
        write: Write<'_>,
        along: &[Along],
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, BackendError> {
        let mut state = self.state();
        match write {
            Write::Create(_) if state.records.contains_key(key) => {
                return Err(BackendError::Exists { key: key.to_owned() });
            }
            Write::Create(_) => {}
            Write::Update(_, expected) => state.expect(key, Some(expected))?,
            Write::Delete(expected) => state.expect(key, expected)?,
        }
        if let Some(Unchanged { key, since }) = unchanged
            && state.expect(key, Some(*since)).is_err()
        {
            return Err(BackendError::Outdated { key: key.clone() });
        }
        for Along { key, value } in along {
            state.set(key, value.as_deref());
        }
        self.shared.changed.notify_all();
        Ok(match write {
            Write::Create(value) | Write::Update(value, _) => state.set(key, Some(value)),
            Write::Delete(_) => state.set(key, None),
        })
    }

    fn list(&self, prefix: &str, limit: Option<usize>) -> Result<Vec<Versioned>, BackendError> {
        check_prefix(prefix)?;
        let state = self.state();
        let from_prefix = state.records.range(prefix.to_owned()..);
        let matching = from_prefix.take_while(|(key, _)| key.starts_with(prefix));
        Ok(matching.take(limit.unwrap_or(usize::MAX)).map(|(_, v)| v.clone()).collect())
    }

    fn revision(&self) -> Result<Revision, BackendError> {
        Ok(Revision(self.state().history.len() as u64))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, BackendError> {
        check_prefix(prefix)?;
        let next = usize::try_from(after.0).unwrap_or(usize::MAX);
        Ok(Box::new(History { store: self.clone(), prefix: prefix.to_owned(), next }))
    }
}

struct History {
    store: Memory,
    prefix: String,
    next: usize,
}

impl Watch for History {
    fn next(&mut self, timeout: Duration) -> Result<Option<Event>, BackendError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.store.state();
        loop {
            while let Some(event) = state.history.get(self.next) {
                self.next += 1;
                if event.key().starts_with(&self.prefix) {
                    return Ok(Some(event.clone()));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let wait = self.store.shared.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_keeps_the_contract() {
        crate::testing::contract::check_all(|| Box::new(super::Memory::new()));
    }
}
