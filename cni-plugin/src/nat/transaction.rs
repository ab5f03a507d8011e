//! The transaction that makes the table what a network wants, as JSON for `nft -j -f -`.
//!
//! Invariant: whatever part of it is there already, it ends the same, and no part of another network
//! is touched. It happens as a whole or not at all.

use std::borrow::Cow;
use std::collections::HashSet;
use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ipnetwork::IpNetwork;
use margay_failpoints::{self as failpoints, Kind};
use nftables::batch::Batch;
use nftables::expr::{Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix};
use nftables::schema::{
    Chain, Element, FlushObject, NfCmd, NfListObject, Nftables, Rule, SetFlag, SetType,
    SetTypeValue, Table,
};
use nftables::stmt::{JumpTarget, Match, NAT, NATFlag, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use rustix::fs::{Access, access};

use super::{NatError, OUTGOING, POOLS, POSTROUTING, Set, TABLE};
use crate::naming::HOST_VETH_PREFIX;

/// Rules of the chain at the hook.
pub(super) const POSTROUTING_RULES: usize = 5;

/// `srcnat` of `nft(8)`, where source addresses are translated.
const PRIORITY: i32 = 100;

/// Where `nft` is looked for besides `PATH`, which a runtime need not set and which of a user's
/// session often lacks the directories of administration.
const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"];

/// The transaction that gives the sets what they are to hold, with rules for those that have none.
pub(super) fn of<'a>(sets: &'a [Set], without_rule: impl Iterator<Item = &'a Set>) -> Nftables<'a> {
    let mut batch = Batch::new();
    batch.add(NfListObject::Table(Table {
        family: NfFamily::INet,
        name: TABLE.into(),
        handle: None,
    }));
    for name in [POSTROUTING, POOLS, OUTGOING] {
        batch.add(NfListObject::Chain(chain(name)));
    }
    batch.add_cmd(NfCmd::Flush(FlushObject::Chain(chain(POSTROUTING))));
    for statements in postrouting() {
        batch.add(rule(POSTROUTING, statements));
    }
    for set in sets {
        let declared = declaration(set);
        batch.add(NfListObject::Set(Box::new(declared.clone())));
        batch.add_cmd(NfCmd::Flush(FlushObject::Set(Box::new(declared))));
        if !set.prefixes.is_empty() {
            batch.add(NfListObject::Element(elements(set)));
        }
    }
    for set in without_rule {
        batch.add(rule(set.chain, of_set(set)));
    }
    batch.to_nftables()
}

/// Runs `nft`: the one place that changes the table. The helper of the crate that has the JSON's types
/// would leave what `nft` says of an error to the plugin's own stderr.
pub(super) fn commit(transaction: &Nftables<'_>) -> Result<(), NatError> {
    let program = find_nft()?;
    let output = failpoints::before(Kind::Nft, format_args!("table inet {TABLE}"))
        .and_then(|()| run(&program, &serde_json::to_vec(transaction)?))
        .map_err(|source| NatError::Run { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(NatError::Refused { reason: format!("{}: {}", output.status, said.trim()) })
}

fn run(program: &Path, transaction: &[u8]) -> io::Result<Output> {
    let mut nft = Command::new(program)
        .args(["-j", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let sent = nft.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(transaction));
    let output = nft.wait_with_output()?;
    // One that ends before it has read everything says why.
    match sent {
        Err(error) if output.status.success() => Err(error),
        _ => Ok(output),
    }
}

/// The program `nft`.
pub(super) fn find_nft() -> Result<PathBuf, NatError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    directories.extend(DIRECTORIES.map(PathBuf::from));
    directories.retain(|directory| directory.is_absolute());
    let programs = directories.iter().map(|directory| directory.join("nft"));
    let is_program = |path: &PathBuf| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    programs.into_iter().find(is_program).ok_or_else(|| {
        let searched: Vec<_> =
            directories.iter().map(|directory| directory.display().to_string()).collect();
        NatError::NoNft { searched: searched.join(":") }
    })
}

/// The rules of the chain at the hook. What goes to a pod of this node keeps its source address,
/// whoever gave the pod its own.
fn postrouting() -> [Vec<Statement<'static>>; POSTROUTING_RULES] {
    let output = NamedExpression::Meta(Meta { key: MetaKey::Oifname });
    let pods = Expression::String(format!("{HOST_VETH_PREFIX}*").into());
    let jump = |target: &'static str| vec![Statement::Jump(JumpTarget { target: target.into() })];
    [
        vec![is(output, pods), Statement::Accept(None)],
        vec![is(address(true, "daddr"), prefix("224.0.0.0".into(), 4)), Statement::Accept(None)],
        vec![is(address(false, "daddr"), prefix("ff00::".into(), 8)), Statement::Accept(None)],
        jump(POOLS),
        jump(OUTGOING),
    ]
}

/// The statements of a set's rule.
fn of_set(set: &Set) -> Vec<Statement<'_>> {
    let (field, verdict) = if set.chain == POOLS {
        ("daddr", Statement::Accept(None))
    } else {
        // As kube-proxy does it: two connections that begin at once do not ask for the same port.
        let flags = Some(HashSet::from([NATFlag::FullyRandom]));
        let nat = NAT { addr: None, family: None, port: None, flags };
        ("saddr", Statement::Masquerade(Some(nat)))
    };
    let name = Expression::String(format!("@{}", set.name).into());
    vec![is(address(set.ipv4, field), name), verdict]
}

fn is<'a>(left: NamedExpression<'a>, right: Expression<'a>) -> Statement<'a> {
    Statement::Match(Match { left: Expression::Named(left), right, op: Operator::EQ })
}

fn address(ipv4: bool, field: &'static str) -> NamedExpression<'static> {
    let protocol = if ipv4 { "ip" } else { "ip6" };
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    NamedExpression::Payload(Payload::PayloadField(field))
}

fn prefix(address: Cow<'_, str>, length: u8) -> Expression<'_> {
    let addr = Box::new(Expression::String(address));
    Expression::Named(NamedExpression::Prefix(Prefix { addr, len: length.into() }))
}

fn chain(name: &'static str) -> Chain<'static> {
    let chain = Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.into(),
        ..Chain::default()
    };
    if name != POSTROUTING {
        return chain;
    }
    Chain {
        _type: Some(NfChainType::NAT),
        hook: Some(NfHook::Postrouting),
        prio: Some(PRIORITY),
        policy: Some(NfChainPolicy::Accept),
        ..chain
    }
}

fn rule<'a>(chain: &'static str, statements: Vec<Statement<'a>>) -> NfListObject<'a> {
    NfListObject::Rule(Rule {
        family: NfFamily::INet,
        table: TABLE.into(),
        chain: chain.into(),
        expr: statements.into(),
        ..Rule::default()
    })
}

fn declaration(set: &Set) -> nftables::schema::Set<'_> {
    let kind = if set.ipv4 { SetType::Ipv4Addr } else { SetType::Ipv6Addr };
    nftables::schema::Set {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: set.name.as_str().into(),
        set_type: SetTypeValue::Single(kind),
        flags: Some(HashSet::from([SetFlag::Interval])),
        ..nftables::schema::Set::default()
    }
}

fn elements(set: &Set) -> Element<'_> {
    let of = |cidr: &IpNetwork| prefix(cidr.network().to_string().into(), cidr.prefix());
    Element {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: set.name.as_str().into(),
        elem: set.prefixes.iter().map(of).collect(),
    }
}
