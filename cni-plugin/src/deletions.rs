//! What is left to remove from a datastore that was out of reach: etcd, when a DEL came.
//!
//! Such a DEL takes away what is on this node, writes down that the rest is to be done, and succeeds:
//! a runtime that waits for a datastore cannot end its pods. One file for an attachment, below
//! `state_dir`, named like its lock and written by rename after `fsync`, so that a file is whole or
//! not there and outlives a power failure.
//!
//! **Order.** The file of an attachment is made, looked at and removed only under the attachment's lock.
//! An ADD that finds one first does what it asks for, by the same teardown as after any
//! remains, and removes it before it makes anything. So whoever else finds the file later, under the lock,
//! finds one that was written after the ADD: what it asks for is never older than what is there. And
//! a removal that etcd carries out late, after its sender has given it up, compares
//! revisions and so leaves alone what was written since.
//!
//! **Crashes.** Everything before the file is written is repeated by the runtime, whose DEL has not
//! succeeded. Whoever does what the file asks for removes it last; killed before that, it is done again, and
//! finds nothing to do.
//!
//! **Of whom.** margay's, and where margay-ipam serves another plugin its own, which takes the same locks. An
//! attachment that has an endpoint is margay's: margay-ipam leaves it alone, but for the one that it is called for,
//! whose endpoint it removes first, since another plugin has taken the attachment over.
//!
//! **Who does it.** DEL, STATUS and GC at their end, an ADD one or two so that a pool does not run dry of
//! addresses that nobody has, and the node's agent, by [`drain`]. The addresses are held till then.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use margay_datastore::Attachment;
use margay_failpoints as failpoints;

use crate::commands::teardown::{Teardown, teardown};
use crate::error::{Error, chain};
use crate::hold::{Hold, Site};
use crate::lock::Lock;
use crate::naming;

/// A file of the queue that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct DeletionError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Extension of a file that is being written.
const UNFINISHED: &str = "tmp";

/// How many a verb does in passing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// A pod waits for it.
    OfAdd,
    /// Nobody waits long.
    OfOthers,
}

impl Share {
    pub(crate) fn attachments(self) -> usize {
        match self {
            Self::OfAdd => 2,
            Self::OfOthers => 64,
        }
    }
}

/// How many are looked at, at most, for each one that is to be done: those that are stuck keep no other waiting, and
/// nobody waits for all of them.
pub(crate) const TRIES_EACH: usize = 8;

/// The queue of a node.
#[derive(Debug)]
pub struct Deletions {
    directory: PathBuf,
}

impl Deletions {
    /// The queue below a state directory.
    #[must_use]
    pub fn below(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("deletions") }
    }

    /// Writes down that the attachment, whose lock the caller has, is to be removed from the
    /// datastore. Durable when it returns.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_off(&self, attachment: &Attachment) -> Result<(), DeletionError> {
        let path = self.path(attachment);
        let failed = |operation| {
            let path = path.clone();
            move |source| DeletionError { operation, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(failed("make the directory of"))?;
        let unfinished = path.with_extension(UNFINISHED);
        let what = |step| format!("{step} that {attachment} is to be removed");
        failpoints::before(failpoints::Kind::File, what("write")).map_err(failed("write"))?;
        let written = File::create(&unfinished).and_then(|mut file| {
            file.write_all(attachment.to_string().as_bytes())?;
            file.sync_all()
        });
        written.map_err(failed("write"))?;
        failpoints::before(failpoints::Kind::File, what("publish"))
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| File::open(&self.directory)?.sync_all())
            .map_err(failed("write"))
    }

    /// Whether the attachment, whose lock the caller has, is to be removed from the datastore.
    #[must_use]
    pub fn has(&self, attachment: &Attachment) -> bool {
        self.path(attachment).exists()
    }

    /// Forgets the attachment, whose lock the caller has: it is removed.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn done(&self, attachment: &Attachment) -> Result<(), DeletionError> {
        let path = self.path(attachment);
        // The first one is of a process that was killed while it wrote.
        for path in [path.with_extension(UNFINISHED), path] {
            if path.exists() {
                let what = format_args!("forget that {attachment} is to be removed");
                failpoints::before(failpoints::Kind::File, what)
                    .and_then(|()| fs::remove_file(&path))
                    .map_err(|source| DeletionError { operation: "remove", path, source })?;
            }
        }
        Ok(())
    }

    /// The attachments that are to be removed. A file that is none of the queue's is passed over.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn attachments(&self) -> Result<Vec<Attachment>, DeletionError> {
        let unreadable =
            |source| DeletionError { operation: "list", path: self.directory.clone(), source };
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(unreadable)?,
        };
        let mut attachments = Vec::new();
        for entry in entries {
            let path = entry.map_err(unreadable)?.path();
            let text = fs::read_to_string(&path).unwrap_or_default();
            let named = text.parse().ok();
            attachments.extend(named.filter(|attachment| self.path(attachment) == path));
        }
        Ok(attachments)
    }

    fn path(&self, attachment: &Attachment) -> PathBuf {
        self.directory.join(naming::host_veth(attachment))
    }
}

/// Removes what was put off, of one network or (`None`) of all, up to a number of attachments. Returns how
/// many it removed. One that a verb is at work on is left to that verb.
///
/// # Errors
/// When the datastore is still out of reach, or busy: the others are left for the next time. When one cannot be
/// removed for a reason of its own, after the others.
pub async fn drain(site: &Site, network: Option<&str>, at_most: usize) -> Result<usize, Error> {
    let queue = Deletions::below(&site.paths.state_dir);
    let mut attachments = queue.attachments()?;
    attachments.retain(|attachment| network.is_none_or(|network| attachment.network() == network));
    let mut removed = 0;
    let mut stuck = Stuck::default();
    for attachment in attachments.into_iter().take(at_most.saturating_mul(TRIES_EACH)) {
        if removed == at_most {
            break;
        }
        let name = naming::host_veth(&attachment);
        let Some(lock) = Lock::try_take(&site.paths.run_dir, &name)? else { continue };
        // An ADD may have been faster.
        if queue.has(&attachment) {
            let hold = Hold::new(site.clone(), attachment, lock);
            let release = |is_reachable| if is_reachable { hold.release() } else { Ok(()) };
            let outcome = teardown(&hold, None, release).await;
            match outcome.and_then(Teardown::or_out_of_reach) {
                Ok(()) => {
                    tracing::info!(attachment = %hold.attachment, "removed what a DEL had put off");
                    removed += 1;
                }
                Err(error) => stuck.pass_over(&hold.attachment, error)?,
            }
        }
    }
    stuck.conclude().map(|()| removed)
}

/// Attachments that could not be removed, each for a reason of its own, as a damaged record is one: it is none to
/// leave the others.
#[derive(Default)]
pub(crate) struct Stuck {
    first: Option<Error>,
}

impl Stuck {
    /// Gives the error back if it is the datastore's and would be that of the next as well.
    pub(crate) fn pass_over(&mut self, attachment: &Attachment, error: Error) -> Result<(), Error> {
        if error.is_out_of_reach() || error.is_busy() {
            return Err(error);
        }
        tracing::warn!(%attachment, error = chain(&error), "what a DEL had put off cannot be removed");
        self.first.get_or_insert(error);
        Ok(())
    }

    pub(crate) fn conclude(self) -> Result<(), Error> {
        self.first.map_or(Ok(()), Err)
    }
}

/// [`drain`] for a verb in passing: a failure is not the verb's.
pub(crate) async fn drain_some(site: &Site, network: &str, share: Share) {
    if let Err(error) = drain(site, Some(network), share.attachments()).await {
        tracing::warn!(error = chain(&error), "what a DEL had put off is put off again");
    }
}
