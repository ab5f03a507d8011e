//! Handing out addresses.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::block::{Allocation, Handle};
use super::clock::{Patience, now_ms, unique};
use super::pool::{Family, Pool, PoolError};
use super::pools::is_closed;
use super::select::Target;
use super::{AssignRequest, Ipam, IpamError};
use crate::backend::{Along, BackendError, Revision};
use crate::keys;
use crate::store::StoreError;

impl Ipam<'_> {
    /// Hands out what the request asks for, all of it or nothing. IPv4 comes before IPv6, and
    /// within a family requested addresses in the order of the request.
    ///
    /// A requested address stands in for the free choice in its family, and is handed out even if
    /// the request does not want its family otherwise.
    pub fn assign(&self, request: &AssignRequest) -> Result<Vec<IpAddr>, IpamError> {
        let request =
            &AssignRequest { pools: self.accept_pools(&request.pools)?, ..request.clone() };
        let wants = wants(request)?;
        let mut assignment = Assignment::new(self, request);
        let outcome = assignment.run(&wants);
        if let Err(error) = &outcome {
            assignment.undo();
            if assignment.declared.is_none() && !error.is_transient() {
                self.refuse_second(request)?;
            }
        }
        outcome
    }

    /// Stores pools that are new or changed, and refuses those whose blocks would lie across
    /// blocks that exist. Returns them as they count: an operator may have closed some.
    fn accept_pools(&self, pools: &[Pool]) -> Result<Vec<Pool>, IpamError> {
        Pool::check_all(pools)?;
        let known = self.store.pools()?;
        let mut accepted = Vec::with_capacity(pools.len());
        for pool in pools {
            let (cidr, block_size) = (pool.cidr, pool.effective_block_size());
            let clash =
                |other: &&Pool| other.overlaps(pool) && other.effective_block_size() != block_size;
            if let Some(other) = known.iter().find(clash) {
                let (stored, stored_block_size) = (other.cidr, other.effective_block_size());
                let error =
                    PoolError::OtherBlockSize { cidr, block_size, stored, stored_block_size };
                return Err(error.into());
            }
            let stored = known.iter().find(|other| other.cidr == cidr);
            let counted = match stored.map(|stored| (stored, pool.as_closed_as(stored))) {
                Some((stored, pool)) if *stored == pool => pool,
                _ => self.write_pool(pool)?,
            };
            let closed = counted.closed || is_closed(pool, &known);
            accepted.push(Pool { closed, ..counted });
        }
        Ok(accepted)
    }

    /// An assignment that comes second fails when it declares its handle, if not before. Whatever it fails by,
    /// this is the reason that counts. One that has declared its handle is not second, and what is there
    /// then is its own, which it could not take back.
    fn refuse_second(&self, request: &AssignRequest) -> Result<(), IpamError> {
        let attachment = &request.attachment;
        if !self.is_known(attachment)? {
            return Ok(());
        }
        let (attachment, addresses) = (attachment.clone(), self.assigned(attachment)?);
        Err(IpamError::AlreadyAssigned { attachment, addresses })
    }
}

/// One thing that is asked for; satisfied by one write of one block.
enum Want<'a> {
    /// Any address of a family, from the first of these pools that has one.
    Any { family: Family, pools: Vec<&'a Pool> },
    /// These addresses, which lie in one block.
    These { pool: &'a Pool, block: IpNetwork, ips: Vec<IpAddr> },
}

fn wants(request: &AssignRequest) -> Result<Vec<Want<'_>>, IpamError> {
    let mut wants: Vec<Want<'_>> = Vec::new();
    for &requested in &request.requested {
        let pool = pool_of(request, requested)?;
        let its_block = pool.block_of(requested);
        let same_block = wants.iter_mut().find_map(|want| match want {
            Want::These { block, ips, .. } if *block == its_block => Some(ips),
            _ => None,
        });
        match same_block {
            Some(ips) if ips.contains(&requested) => {}
            Some(ips) => ips.push(requested),
            None => wants.push(Want::These { pool, block: its_block, ips: vec![requested] }),
        }
    }
    for (wanted, family) in [(request.ipv4, Family::V4), (request.ipv6, Family::V6)] {
        if !wanted || request.requested.iter().any(|ip| Family::of_ip(*ip) == family) {
            continue;
        }
        let usable = |pool: &&Pool| Family::of(&pool.cidr) == family && pool.is_open();
        let pools: Vec<&Pool> = request.pools.iter().filter(usable).collect();
        if pools.is_empty() {
            return Err(IpamError::NoPool { family: family.name() });
        }
        wants.push(Want::Any { family, pools });
    }
    Ok(wants)
}

fn pool_of(request: &AssignRequest, ip: IpAddr) -> Result<&Pool, IpamError> {
    let Some(pool) = request.pools.iter().find(|pool| pool.cidr.contains(ip)) else {
        let pools = request.pools.iter().map(|pool| pool.cidr).collect();
        return Err(IpamError::RequestedNotInPool { ip, pools });
    };
    if !pool.is_open() {
        return Err(IpamError::RequestedInDisabledPool { ip, pool: pool.cidr });
    }
    if !pool.hands_out(ip) {
        return Err(IpamError::RequestedReserved { ip, pool: pool.cidr });
    }
    Ok(pool)
}

/// One call of assign on its way.
struct Assignment<'a> {
    ipam: &'a Ipam<'a>,
    request: &'a AssignRequest,
    handle: Handle,
    /// The handle as this assignment wrote it last; `None` before the first time.
    declared: Option<Revision>,
    patience: Patience,
}

impl<'a> Assignment<'a> {
    fn new(ipam: &'a Ipam<'a>, request: &'a AssignRequest) -> Self {
        let handle = Handle {
            attachment: request.attachment.clone(),
            assignment: unique(),
            node: ipam.node.clone(),
            boot_id: ipam.boot_id.clone(),
            netns: request.netns.clone(),
            blocks: Vec::new(),
            releasing: false,
        };
        Self { ipam, request, handle, declared: None, patience: Patience::new() }
    }

    fn run(&mut self, wants: &[Want<'_>]) -> Result<Vec<IpAddr>, IpamError> {
        let mut targets = Vec::with_capacity(wants.len());
        for want in wants {
            targets.push(self.find(want)?);
        }
        self.declare(targets.iter().map(|target| target.block.cidr))?;
        let mut ips = Vec::new();
        for (want, target) in wants.iter().zip(targets) {
            ips.extend(self.take(want, target)?);
        }
        let place = |ip: &IpAddr| {
            let requested = self.request.requested.iter().position(|other| other == ip);
            (ip.is_ipv6(), requested)
        };
        ips.sort_by_key(place);
        Ok(ips)
    }

    /// Reads a block that can satisfy the want.
    fn find<'p>(&self, want: &Want<'p>) -> Result<Target<'p>, IpamError> {
        match want {
            Want::Any { family, pools } => {
                self.ipam.choose(*family, pools, self.request.strict_affinity)
            }
            Want::These { pool, block, ips } => {
                let target = self.ipam.target(pool, block)?;
                let node = &target.block.node;
                if self.request.strict_affinity && *node != self.ipam.node {
                    let (ip, node) = (ips[0], node.clone());
                    return Err(IpamError::RequestedElsewhere { ip, node });
                }
                Ok(target)
            }
        }
    }

    /// Writes down which blocks may have slots of this assignment before any of them has. Once
    /// written, the handle also tells whether a release came in between.
    fn declare(&mut self, blocks: impl Iterator<Item = IpNetwork>) -> Result<(), IpamError> {
        let before = self.handle.blocks.len();
        for block in blocks {
            if !self.handle.blocks.contains(&block) {
                self.handle.blocks.push(block);
            }
        }
        if self.handle.blocks.len() == before {
            return Ok(());
        }
        let (store, key) = (self.ipam.store, keys::handle(&self.handle.attachment));
        let written = match self.declared {
            None => {
                let mark = Along::mark(keys::on(&self.handle.node, &key));
                store.create_along(&key, &self.handle, &[mark])
            }
            Some(revision) => store.update(&key, &self.handle, revision),
        };
        match written {
            Ok(revision) => self.declared = Some(revision),
            Err(StoreError::Backend(BackendError::Exists { .. })) => {
                let attachment = self.handle.attachment.clone();
                let addresses = self.ipam.assigned(&attachment)?;
                return Err(IpamError::AlreadyAssigned { attachment, addresses });
            }
            Err(StoreError::Backend(
                BackendError::Conflict { .. } | BackendError::NotFound { .. },
            )) => return Err(self.interrupted()),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Takes slots of the target's block by one write, looking for others as long as somebody else
    /// is faster. Every read of a block is followed by a look at the handle before the write:
    /// that order is what a concurrent release relies on.
    fn take(&mut self, want: &Want<'_>, target: Target<'_>) -> Result<Vec<IpAddr>, IpamError> {
        let mut target = target;
        loop {
            if let Some(ips) = self.pick(want, &target)? {
                let mut block = target.block.clone();
                for ip in &ips {
                    block.take(*ip, self.allocation());
                }
                if self.ipam.write_block(&block, target.revision)? {
                    self.ipam.after_take(&target, &block);
                    return Ok(ips);
                }
                self.patience.conflict()?;
            }
            target = match self.ipam.read_again(&target)? {
                Some(again) if self.pick(want, &again)?.is_some() => again,
                _ => self.find(want)?,
            };
            self.declare(std::iter::once(target.block.cidr))?;
            self.check_undisturbed()?;
        }
    }

    /// The addresses to take from a block; `None` if a free choice finds none there any more.
    fn pick(&self, want: &Want<'_>, target: &Target<'_>) -> Result<Option<Vec<IpAddr>>, IpamError> {
        match want {
            Want::Any { .. } => Ok(target.vacancy().map(|vacancy| vec![vacancy.ip])),
            Want::These { ips, .. } => {
                for ip in ips {
                    if let Some(allocation) = target.block.taken.get(ip) {
                        let holder = allocation.attachment.clone();
                        return Err(IpamError::RequestedInUse { ip: *ip, holder });
                    }
                }
                Ok(Some(ips.clone()))
            }
        }
    }

    fn check_undisturbed(&self) -> Result<(), IpamError> {
        let current = self.ipam.store.read::<Handle>(&keys::handle(&self.handle.attachment))?;
        if current.map(|handle| handle.revision) == self.declared {
            Ok(())
        } else {
            Err(self.interrupted())
        }
    }

    fn interrupted(&self) -> IpamError {
        IpamError::Interrupted { attachment: self.handle.attachment.clone() }
    }

    fn allocation(&self) -> Allocation {
        Allocation {
            attachment: self.handle.attachment.clone(),
            assignment: self.handle.assignment.clone(),
            pod: self.request.pod.clone(),
            netns: self.request.netns.clone(),
            node: self.handle.node.clone(),
            boot_id: self.handle.boot_id.clone(),
            assigned_at: now_ms() / 1_000,
        }
    }

    /// Gives back what was taken so far. If that fails too, the handle stays, and the DEL that
    /// follows a failed ADD finds it.
    fn undo(&self) {
        let attachment = &self.handle.attachment;
        let own = |handle: &Handle| handle.assignment == self.handle.assignment;
        if let Err(error) = self.ipam.release_if(attachment, &own) {
            tracing::warn!(%attachment, %error, "a failed assignment is left to the next release");
        }
    }
}
