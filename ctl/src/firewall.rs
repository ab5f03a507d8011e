//! The chains that forwarded packets pass, whoever made them: of nftables, of iptables on nftables, and of iptables of the
//! kernel's older kind.
//!
//! What the programs deliver passes none of them; what they leave to the stack passes every one. A chain drops a pool's
//! packets if it ends in dropping and none of its rules accepts the pool, or margay's interfaces, without a further
//! condition. So a rule that is more particular than that is not counted as one that helps.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::process::{Command, Stdio};

use ipnetwork::IpNetwork;
use margay::naming;
use serde_json::Value;

/// How deep rules of one chain may lead into others.
const DEPTH: usize = 8;
/// The iptables of the kernel's older kind, of IPv4 and of IPv6, and where the kernel says which tables are in use.
const LEGACY: [(bool, &str, &str); 2] = [
    (true, "iptables-legacy", "/proc/self/net/ip_tables_names"),
    (false, "ip6tables-legacy", "/proc/self/net/ip6_tables_names"),
];

/// Every chain at the hook; what cannot be looked at is an error of its own.
pub(crate) fn chains() -> Vec<io::Result<Chain>> {
    let mut chains = match nftables() {
        Ok(found) => found.into_iter().map(Ok).collect(),
        // Where nobody has nft, nobody has a use for nftables.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => vec![Err(error)],
    };
    for (ipv4, program, tables) in LEGACY {
        // Asking would make the table.
        let is_there = fs::read_to_string(tables).unwrap_or_default();
        if is_there.lines().any(|table| table == "filter") {
            chains.push(legacy(ipv4, program));
        }
    }
    chains
}

/// A chain at the hook, with all chains that it may lead to.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// For people.
    pub(crate) name: String,
    /// Whether what comes to its end is dropped.
    drops_at_its_end: bool,
    /// Which families come by; `None` for both.
    ipv4: Option<bool>,
    /// By its name.
    first: String,
    rules: BTreeMap<String, Vec<Rule>>,
    /// As it is printed, with those that it leads to.
    pub(crate) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    condition: Condition,
    verdict: Verdict,
}

/// Of which packets a rule speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    /// Of all.
    None,
    /// Of those of one of these ranges, whether it sends or receives.
    Range(IpNetwork),
    /// Of those of margay's interfaces.
    Interfaces,
    /// Of some.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    /// To another chain, and on behind the rule from there.
    To(String),
    /// To another chain, in place of the rest of its own.
    Goto(String),
    /// Back to where the chain was led to from, or to its policy.
    Return,
    Other,
}

/// How a chain ends for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Accepted,
    Dropped,
    /// It goes on where it came from.
    Behind,
}

impl Chain {
    /// Whether packets of pods of this range are dropped.
    pub(crate) fn drops(&self, pool: &IpNetwork) -> bool {
        let is_asked = self.ipv4.is_none_or(|ipv4| ipv4 == pool.is_ipv4());
        is_asked
            && match self.end(&self.first, pool, DEPTH) {
                End::Accepted => false,
                End::Dropped => true,
                End::Behind => self.drops_at_its_end,
            }
    }

    fn end(&self, chain: &str, pool: &IpNetwork, depth: usize) -> End {
        let Some(rules) = self.rules.get(chain).filter(|_| depth > 0) else { return End::Behind };
        for rule in rules.iter().filter(|rule| rule.condition.is_of(pool)) {
            match &rule.verdict {
                Verdict::Accept => return End::Accepted,
                // What drops a pool alone was meant so.
                Verdict::Drop if rule.condition == Condition::None => return End::Dropped,
                Verdict::Return => return End::Behind,
                Verdict::To(other) => match self.end(other, pool, depth - 1) {
                    End::Behind => {}
                    end => return end,
                },
                Verdict::Goto(other) => return self.end(other, pool, depth - 1),
                Verdict::Drop | Verdict::Other => {}
            }
        }
        End::Behind
    }
}

impl Condition {
    fn is_of(&self, pool: &IpNetwork) -> bool {
        match self {
            Self::None | Self::Interfaces => true,
            Self::Range(range) => {
                range.is_ipv4() == pool.is_ipv4()
                    && (range.contains(pool.network()) || pool.contains(range.network()))
            }
            Self::Other => false,
        }
    }

    /// Both at once: of two that say something, nobody can tell.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, one) | (one, Self::None) => one,
            _ => Self::Other,
        }
    }

    fn interface(name: &str) -> Self {
        let prefix = name.trim_end_matches(['*', '+']);
        let is_ours = prefix.len() < name.len() && naming::HOST_VETH_PREFIX.starts_with(prefix);
        if is_ours { Self::Interfaces } else { Self::Other }
    }
}

/// What a program prints.
fn output_of(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(io::Error::other(format!("{program} {}: {said}", arguments.join(" "))))
        }
    }
}

/// The chains of nftables at the hook, which iptables may have made.
fn nftables() -> io::Result<Vec<Chain>> {
    let chains = listed(&["-j", "list", "chains"], "chain")?;
    let of_hook = chains.iter().filter(|chain| {
        let family = chain["family"].as_str().unwrap_or_default();
        chain["hook"] == "forward" && ["ip", "ip6", "inet"].contains(&family)
    });
    let mut found = Vec::new();
    for chain in of_hook {
        let field = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
        let (family, table, name) = (field("family"), field("table"), field("name"));
        let mut rules: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        // The whole of a table of kube-proxy's has tens of thousands; a chain and what it leads to are few.
        let (mut wanted, mut text) = (vec![name.clone()], String::new());
        while let Some(next) = wanted.pop() {
            if rules.contains_key(&next) || rules.len() > 64 {
                continue;
            }
            let list = ["list", "chain", &family, &table, &next];
            text += &output_of("nft", &list)?;
            let listed = listed(&[&["-j"], &list[..]].concat(), "rule")?;
            let of_chain: Vec<Rule> = listed.iter().map(nft_rule).collect();
            wanted.extend(of_chain.iter().filter_map(|rule| match &rule.verdict {
                Verdict::To(other) | Verdict::Goto(other) if rule.condition != Condition::Other => {
                    Some(other.clone())
                }
                _ => None,
            }));
            rules.insert(next, of_chain);
        }
        found.push(Chain {
            drops_at_its_end: chain["policy"] == "drop",
            ipv4: match family.as_str() {
                "ip" => Some(true),
                "ip6" => Some(false),
                _ => None,
            },
            name: format!("chain {name} of nftables table {family} {table}"),
            first: name,
            rules,
            text,
        });
    }
    Ok(found)
}

fn listed(arguments: &[&str], kind: &str) -> io::Result<Vec<Value>> {
    let document: Value = serde_json::from_str(&output_of("nft", arguments)?)?;
    let objects = document["nftables"].as_array().cloned().unwrap_or_default();
    Ok(objects.into_iter().filter_map(|mut object| Some(object.get_mut(kind)?.take())).collect())
}

fn nft_rule(rule: &Value) -> Rule {
    let mut found = Rule { condition: Condition::None, verdict: Verdict::Other };
    for statement in rule["expr"].as_array().into_iter().flatten() {
        let Some((kind, about)) = statement.as_object().and_then(|fields| fields.iter().next())
        else {
            continue;
        };
        let target = || about["target"].as_str().unwrap_or_default().to_owned();
        match kind.as_str() {
            "match" => found.condition = found.condition.and(nft_condition(about)),
            "accept" => found.verdict = Verdict::Accept,
            "drop" | "reject" => found.verdict = Verdict::Drop,
            "return" => found.verdict = Verdict::Return,
            "jump" => found.verdict = Verdict::To(target()),
            "goto" => found.verdict = Verdict::Goto(target()),
            "counter" | "comment" | "log" => {}
            // A comment of iptables' is an extension of its own.
            "xt" if about["name"] == "comment" => {}
            _ => found.condition = Condition::Other,
        }
    }
    found
}

fn nft_condition(about: &Value) -> Condition {
    let (left, right) = (&about["left"], &about["right"]);
    if about["op"] != "==" {
        return Condition::Other;
    }
    if let Some("iifname" | "oifname") = left["meta"]["key"].as_str() {
        return right.as_str().map_or(Condition::Other, Condition::interface);
    }
    let Some("saddr" | "daddr") = left["payload"]["field"].as_str() else {
        return Condition::Other;
    };
    let prefix = &right["prefix"];
    let range = match (prefix["addr"].as_str(), prefix["len"].as_u64()) {
        (Some(address), Some(len)) => format!("{address}/{len}"),
        _ => right.as_str().unwrap_or_default().to_owned(),
    };
    range.parse().map_or(Condition::Other, Condition::Range)
}

/// The chain of the iptables that nftables knows nothing of.
fn legacy(ipv4: bool, program: &str) -> io::Result<Chain> {
    let text = output_of(program, &["-w", "-t", "filter", "-S"])?;
    let mut chain = Chain {
        text: text.clone(),
        name: format!("chain FORWARD of {program}"),
        ipv4: Some(ipv4),
        first: "FORWARD".to_owned(),
        ..Chain::default()
    };
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["-P", "FORWARD", policy] => chain.drops_at_its_end = *policy == "DROP",
            ["-A", name, rule @ ..] => {
                chain.rules.entry((*name).to_owned()).or_default().push(legacy_rule(rule));
            }
            _ => {}
        }
    }
    Ok(chain)
}

fn legacy_rule(mut words: &[&str]) -> Rule {
    let mut found = Rule { condition: Condition::None, verdict: Verdict::Other };
    loop {
        let (condition, rest) = match words {
            [] => return found,
            ["-s" | "-d", range, rest @ ..] => {
                (range.parse().map_or(Condition::Other, Condition::Range), rest)
            }
            ["-i" | "-o", name, rest @ ..] => (Condition::interface(name), rest),
            ["-m", "comment", "--comment", comment @ ..] => (Condition::None, behind(comment)),
            ["-g", target, ..] => {
                found.verdict = Verdict::Goto((*target).to_owned());
                return found;
            }
            ["-j", target, ..] => {
                found.verdict = match *target {
                    "ACCEPT" => Verdict::Accept,
                    "DROP" | "REJECT" => Verdict::Drop,
                    "RETURN" => Verdict::Return,
                    "LOG" => Verdict::Other,
                    other => Verdict::To(other.to_owned()),
                };
                return found;
            }
            [_, rest @ ..] => (Condition::Other, rest),
        };
        found.condition = found.condition.and(condition);
        words = rest;
    }
}

/// What stands behind a comment, which may be several words in quotes.
fn behind<'w, 't>(mut words: &'w [&'t str]) -> &'w [&'t str] {
    let is_quoted = words.first().is_some_and(|word| word.starts_with('"'));
    while let [word, rest @ ..] = words {
        words = rest;
        if !is_quoted || (word.len() > 1 && word.ends_with('"') && !word.ends_with("\\\"")) {
            break;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pool() -> IpNetwork {
        "10.244.0.0/16".parse().unwrap()
    }

    fn legacy_chain(rules: &[&str]) -> Chain {
        let words = |rule: &str| rule.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut chain =
            Chain { first: "FORWARD".into(), drops_at_its_end: true, ..Chain::default() };
        for rule in rules {
            let words = words(rule);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let rule = legacy_rule(&words[1..]);
            chain.rules.entry(words[0].to_owned()).or_default().push(rule);
        }
        chain
    }

    #[test]
    fn a_rule_that_accepts_the_pods_is_one_that_asks_for_nothing_else() {
        for (rules, drops) in [
            (&[][..], true),
            (&["FORWARD -j ACCEPT"], false),
            (&["FORWARD -s 10.244.0.0/16 -j ACCEPT"], false),
            (&["FORWARD -d 10.0.0.0/8 -j ACCEPT"], false),
            (&["FORWARD -s 10.245.0.0/16 -j ACCEPT"], true),
            (&["FORWARD -i mgy+ -j ACCEPT"], false),
            (&["FORWARD -i mgyb20f277e7020 -j ACCEPT"], true),
            (&["FORWARD -o docker0 -j ACCEPT"], true),
            (&["FORWARD ! -s 10.244.0.0/16 -j ACCEPT"], true),
            (&["FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], true),
            (&["FORWARD -s 10.244.0.0/16 -p tcp -j ACCEPT"], true),
            (&["FORWARD -j PODS", "PODS -i mgy+ -j ACCEPT"], false),
            (&["FORWARD -p tcp -j PODS", "PODS -i mgy+ -j ACCEPT"], true),
            (&["FORWARD -m comment --comment \"of the pods\" -i mgy+ -j ACCEPT"], false),
            (&["FORWARD -m comment --comment x -i docker0 -j ACCEPT"], true),
            (&["FORWARD -j DROP", "FORWARD -i mgy+ -j ACCEPT"], true),
            (&["FORWARD -j LOOP", "LOOP -j LOOP"], true),
            (
                &[
                    "FORWARD -j PODS",
                    "FORWARD -j ACCEPT",
                    "PODS -s 10.244.0.0/16 -j RETURN",
                    "PODS -j DROP",
                ],
                false,
            ),
            (
                &["FORWARD -j PODS", "FORWARD -j ACCEPT", "PODS -p tcp -j RETURN", "PODS -j DROP"],
                true,
            ),
            (&["FORWARD -s 10.244.0.0/16 -j RETURN", "FORWARD -j ACCEPT"], true),
            (&["FORWARD -g PODS", "FORWARD -j ACCEPT", "PODS -i docker0 -j ACCEPT"], true),
            (&["FORWARD -j ALL", "FORWARD -j ACCEPT", "ALL -g PODS", "ALL -j DROP"], false),
        ] {
            assert_eq!(legacy_chain(rules).drops(&pool()), drops, "{rules:?}");
        }
    }

    #[test]
    fn a_rule_of_nftables_is_read_as_it_is_printed() {
        let rule = |expr: Value| nft_rule(&json!({ "expr": expr }));
        let address = json!({"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
            "right": {"prefix": {"addr": "10.244.0.0", "len": 16}}}});
        let interface =
            json!({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "mgy*"}});
        let state = json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "established"}});
        let (counter, accept) =
            (json!({"counter": {"packets": 0, "bytes": 0}}), json!({"accept": null}));

        let of_address = rule(json!([address, counter, accept]));
        let of_interface = rule(json!([interface, accept]));
        let of_state = rule(json!([state, accept]));
        let back = rule(json!([{"counter": {"packets": 0, "bytes": 0}}, {"return": null}]));
        let jump =
            rule(json!([{"xt": {"type": "match", "name": "comment"}}, {"jump": {"target": "x"}}]));
        let goto = rule(json!([{"goto": {"target": "x"}}]));

        let accepts = |condition| Rule { condition, verdict: Verdict::Accept };
        assert_eq!(of_address, accepts(Condition::Range(pool())));
        assert_eq!(of_interface, accepts(Condition::Interfaces));
        assert_eq!(of_state, accepts(Condition::Other));
        let always = |verdict| Rule { condition: Condition::None, verdict };
        assert_eq!(back, always(Verdict::Return));
        assert_eq!(jump, always(Verdict::To("x".to_owned())));
        assert_eq!(goto, always(Verdict::Goto("x".to_owned())));
    }
}
