//! A backend in the midst of whose calls something else happens.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::backend::{Along, Backend, BackendError, Revision, Unchanged, Versioned, Watch, Write};

/// Passes everything on to another backend, and runs a hook before one read or write.
pub struct Hooked<B> {
    inner: B,
    /// Calls still to pass before the hook; it runs at 0.
    left: AtomicU32,
    hook: Mutex<Option<Hook>>,
}

type Hook = Box<dyn FnOnce() + Send>;

impl<B: Backend> Hooked<B> {
    /// The hook runs before the call with this number, counted from 0.
    pub fn new(inner: B, at_call: u32, hook: impl FnOnce() + Send + 'static) -> Self {
        let hook: Hook = Box::new(hook);
        Self { inner, left: AtomicU32::new(at_call), hook: Mutex::new(Some(hook)) }
    }

    /// Whether the hook has run.
    pub fn has_run(&self) -> bool {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn step(&self) -> &B {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).take();
            hook.into_iter().for_each(|hook| hook());
        }
        &self.inner
    }
}

impl<B: Backend> Backend for Hooked<B> {
    fn get(&self, key: &str) -> Result<Option<Versioned>, BackendError> {
        self.step().get(key)
    }

    fn write_if(
        &self,
        key: &str,
        write: Write<'_>,
        along: &[Along],
        unchanged: Option<&Unchanged>,
    ) -> Result<Revision, BackendError> {
        self.step().write_if(key, write, along, unchanged)
    }

    fn list(&self, prefix: &str, limit: Option<usize>) -> Result<Vec<Versioned>, BackendError> {
        self.step().list(prefix, limit)
    }

    fn revision(&self) -> Result<Revision, BackendError> {
        self.inner.revision()
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, BackendError> {
        self.inner.watch(prefix, after)
    }
}
