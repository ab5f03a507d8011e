//! The backend of a single node: one SQLite file.

use std::path::Path;

use crate::backend::{Backend, BackendError, Revision, Versioned, Watch};

/// A store in one SQLite file, shared by any number of processes.
pub struct Sqlite {}

impl Sqlite {
    /// Opens the database at `path`; makes it (mode 0600) and its directory (mode 0700) if absent.
    pub fn open(path: &Path) -> Result<Self, BackendError> {
        todo!("{}", path.display())
    }
}

impl Backend for Sqlite {
    fn get(&self, _key: &str) -> Result<Option<Versioned>, BackendError> {
        todo!()
    }
    fn create(&self, _key: &str, _value: &[u8]) -> Result<Revision, BackendError> {
        todo!()
    }
    fn update(&self, _: &str, _: &[u8], _: Revision) -> Result<Revision, BackendError> {
        todo!()
    }
    fn delete(&self, _key: &str, _expected: Option<Revision>) -> Result<(), BackendError> {
        todo!()
    }
    fn list(&self, _: &str, _: Option<usize>) -> Result<Vec<Versioned>, BackendError> {
        todo!()
    }
    fn revision(&self) -> Result<Revision, BackendError> {
        todo!()
    }
    fn watch(&self, _: &str, _: Revision) -> Result<Box<dyn Watch>, BackendError> {
        todo!()
    }
}
