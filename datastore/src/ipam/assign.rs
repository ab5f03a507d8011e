//! Handing out addresses.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::block::{Allocation, Handle};
use super::clock::{Patience, now_ms, unique};
use super::pool::{Family, Pool};
use super::pools::{FoundOpen, found_open};
use super::select::Target;
use super::{AssignRequest, Ipam, IpamError};
use crate::backend::{Along, BackendError, Revision, Unchanged};
use crate::keys;
use crate::store::{StoreError, Stored};

impl Ipam<'_> {
    /// Hands out what the request asks for, all of it or nothing. IPv4 comes before IPv6, and
    /// within a family requested addresses in the order of the request.
    ///
    /// A requested address stands in for the free choice in its family, and is handed out even if
    /// the request does not want its family otherwise.
    pub fn assign(&self, request: &AssignRequest) -> Result<Vec<IpAddr>, IpamError> {
        self.assign_chosen(request, &[])
    }

    /// The same of pools, those of these ranges among them, that are the datastore's and were only chosen. They
    /// count as their records are now, which are not written: one that is gone is not brought back.
    pub fn assign_chosen(
        &self,
        request: &AssignRequest,
        chosen: &[IpNetwork],
    ) -> Result<Vec<IpAddr>, IpamError> {
        let (pools, found_open) = self.accept_pools(&request.pools, chosen)?;
        let request = &AssignRequest { pools, ..request.clone() };
        let wants = wants(request)?;
        let mut assignment = Assignment::new(Ipam { found_open, ..self.clone() }, request);
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
    /// blocks that exist. Returns them as they count, since an operator may have closed some, and those
    /// that are not closed with their records.
    fn accept_pools(
        &self,
        pools: &[Pool],
        chosen: &[IpNetwork],
    ) -> Result<(Vec<Pool>, FoundOpen), IpamError> {
        Pool::check_all(pools)?;
        let mut known = self.known_pools()?;
        let is_chosen = |pool: &Pool| chosen.contains(&pool.cidr);
        let mut has_written = false;
        for pool in pools.iter().filter(|pool| !is_chosen(pool)) {
            let pool = &pool.without_taken_name(&known);
            pool.check_blocks(&known)?;
            let stored = known.iter().find(|known| known.record.cidr == pool.cidr);
            let is_as_stored =
                |stored: &Stored<Pool>| stored.record == pool.as_closed_as(&stored.record);
            if !stored.is_some_and(is_as_stored) {
                self.write_pool(pool, stored.is_some())?;
                has_written = true;
            }
        }
        if has_written {
            // Whoever wrote or closed a pool of the same range meanwhile sees this one, or is seen here.
            known = self.known_pools()?;
            for pool in pools.iter().filter(|pool| !is_chosen(pool)) {
                pool.check_blocks(&known)?;
            }
        }
        let found_open = found_open(pools, &known);
        let mut accepted = pools.to_vec();
        for pool in &mut accepted {
            let stored = known.iter().find(|known| known.record.cidr == pool.cidr);
            let Some(Stored { record: stored, .. }) = stored else {
                return Err(IpamError::PoolDeleted { pool: pool.cidr });
            };
            if is_chosen(pool) {
                // Who created it may have named no gateway, which no pod gets for all that.
                let gateway = stored.gateway.or(pool.gateway);
                *pool = Pool { gateway, ..stored.clone() };
                pool.check_blocks(&known)?;
            }
            pool.closed = !found_open.contains_key(&pool.cidr);
        }
        Ok((accepted, found_open))
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
    ipam: Ipam<'a>,
    request: &'a AssignRequest,
    handle: Handle,
    /// The handle as this assignment wrote it last; `None` before the first time.
    declared: Option<Revision>,
    patience: Patience,
    /// A pool that was there when it began.
    deleted: Option<IpNetwork>,
}

/// A target, and the record of its pool from before it was read.
struct Found<'p> {
    target: Target<'p>,
    by: Option<Unchanged>,
}

impl<'a> Assignment<'a> {
    fn new(ipam: Ipam<'a>, request: &'a AssignRequest) -> Self {
        let handle = Handle {
            attachment: request.attachment.clone(),
            assignment: unique(),
            node: ipam.node.clone(),
            boot_id: ipam.boot_id.clone(),
            netns: request.netns.clone(),
            blocks: Vec::new(),
            releasing: false,
        };
        let (patience, deleted) = (Patience::new(), None);
        Self { ipam, request, handle, declared: None, patience, deleted }
    }

    fn run(&mut self, wants: &[Want<'_>]) -> Result<Vec<IpAddr>, IpamError> {
        let mut found = Vec::with_capacity(wants.len());
        for want in wants {
            found.push(self.find(want)?);
        }
        self.declare(found.iter().map(|found| found.target.block.cidr))?;
        let mut ips = Vec::new();
        for (want, found) in wants.iter().zip(found) {
            ips.extend(self.take(want, found)?);
        }
        let place = |ip: &IpAddr| {
            let requested = self.request.requested.iter().position(|other| other == ip);
            (ip.is_ipv6(), requested)
        };
        ips.sort_by_key(place);
        Ok(ips)
    }

    /// Reads a block that can satisfy the want, of a pool that is open.
    fn find<'p>(&mut self, want: &Want<'p>) -> Result<Found<'p>, IpamError> {
        loop {
            match self.look_for(want) {
                Err(error) if error.is_outdated() => self.look_at_pools()?,
                Err(error) => return Err(error),
                Ok(target) => {
                    let by = self.ipam.found_open.get(&target.pool.cidr).cloned();
                    return Ok(Found { target, by });
                }
            }
            self.patience.conflict()?;
        }
    }

    fn look_for<'p>(&self, want: &Want<'p>) -> Result<Target<'p>, IpamError> {
        match want {
            Want::Any { family, pools } => {
                let open = pools.iter().copied().filter(|pool| self.is_open(pool));
                let open: Vec<&Pool> = open.collect();
                match self.deleted {
                    _ if !open.is_empty() => {}
                    Some(pool) => return Err(IpamError::PoolDeleted { pool }),
                    None => return Err(IpamError::NoPool { family: family.name() }),
                }
                self.ipam.choose(*family, &open, self.request.strict_affinity)
            }
            Want::These { pool, ips, .. } if !self.is_open(pool) => {
                let (ip, pool) = (ips[0], pool.cidr);
                Err(match self.deleted == Some(pool) {
                    true => IpamError::PoolDeleted { pool },
                    false => IpamError::RequestedInDisabledPool { ip, pool },
                })
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

    fn is_open(&self, pool: &Pool) -> bool {
        self.ipam.found_open.contains_key(&pool.cidr)
    }

    /// Looks at the pools again, one of which somebody has changed. What was read of blocks before that is
    /// not to be written by what is found.
    fn look_at_pools(&mut self) -> Result<(), IpamError> {
        let known = self.ipam.known_pools()?;
        for pool in &self.request.pools {
            pool.check_blocks(&known)?;
            if !known.iter().any(|known| known.record.cidr == pool.cidr) {
                self.deleted = Some(pool.cidr);
            }
        }
        self.ipam.found_open = found_open(&self.request.pools, &known);
        Ok(())
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
    /// that order is what a concurrent release relies on. And the write goes by a record of the pool that
    /// was read before the block: by that order nothing is taken of a pool that is being deleted.
    fn take(&mut self, want: &Want<'_>, found: Found<'_>) -> Result<Vec<IpAddr>, IpamError> {
        let mut found = found;
        loop {
            let Found { target, by } = &found;
            if let Some(ips) = self.pick(want, target)? {
                let mut block = target.block.clone();
                for ip in &ips {
                    block.take(*ip, self.allocation());
                }
                match self.ipam.write_block(&block, target.read.as_ref(), by.as_ref()) {
                    Ok(true) => {
                        self.ipam.after_take(target, &block);
                        return Ok(ips);
                    }
                    Err(error) if error.is_outdated() => self.look_at_pools()?,
                    outcome => drop(outcome?),
                }
                self.patience.conflict()?;
            }
            found = self.find_again(want, found)?;
            self.declare(std::iter::once(found.target.block.cidr))?;
            self.check_undisturbed()?;
        }
    }

    /// The same block as it is at this moment, or another if it has nothing any more.
    fn find_again<'p>(
        &mut self,
        want: &Want<'p>,
        Found { target, .. }: Found<'p>,
    ) -> Result<Found<'p>, IpamError> {
        if let Some(by) = self.ipam.found_open.get(&target.pool.cidr)
            && let Some(again) = self.ipam.read_again(&target)?
            && self.pick(want, &again)?.is_some()
        {
            return Ok(Found { target: again, by: Some(by.clone()) });
        }
        self.find(want)
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
