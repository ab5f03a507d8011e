//! What can be read of it all, and giving back what nothing leads to.

use super::*;

#[test]
fn the_ledger_has_every_slot_with_who_has_it_and_where() {
    let store = store();
    let pools = [pool("10.0.0.0/26", 28), pool("fd00::/120", 122)];
    let first = node(&store, "a").assign(&request(1, &pools)).unwrap();
    let other = node(&store, "b").assign(&request(2, &pools)).unwrap();
    node(&store, "b").release(&attachment(2)).unwrap();

    let ledger = store.ledger().unwrap();

    for ip in &first {
        let (block, slot) = ledger.slot(*ip).unwrap();
        assert_eq!((block.owner(), &slot.attachment), (Some("a"), &attachment(1)));
        assert_eq!(slot.node, "a");
    }
    assert_eq!(ledger.slots_of(&attachment(1)).count(), 2);
    assert!(other.iter().all(|ip| ledger.slot(*ip).is_none()));
    assert_eq!(ledger.blocks.iter().map(|block| block.released).sum::<usize>(), 2);
    assert_eq!(ledger.blocks.iter().find(|block| block.cidr.is_ipv4()).unwrap().slots, 16);
    let holders: Vec<_> = ledger.holders.iter().map(|holder| holder.node.as_str()).collect();
    assert_eq!(holders, ["a"]);
}

#[test]
fn a_record_that_does_not_decode_is_named_and_the_others_are_there() {
    let store = store();
    let pools = [pool("10.0.0.0/24", 26)];
    let ips = node(&store, "a").assign(&request(1, &pools)).unwrap();
    store.backend().create("handles/net/c9/eth0", b"{").unwrap();

    let ledger = store.ledger().unwrap();

    assert!(ledger.slot(ips[0]).is_some());
    assert_eq!(ledger.illegible[0].0, "handles/net/c9/eth0");
}

#[test]
fn a_slot_that_nothing_leads_to_is_given_back_and_no_other() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("10.0.0.0/24", 26)];
    let held = ipam.assign(&request(1, &pools)).unwrap()[0];
    let lost = ipam.assign(&request(2, &pools)).unwrap()[0];
    let handle = keys::handle(&attachment(2));
    for key in [keys::on("a", &handle), handle] {
        store.backend().delete(&key, None).unwrap();
    }

    assert_eq!(ipam.release_orphan(held).unwrap(), None);
    assert_eq!(ipam.release_orphan(lost).unwrap(), Some(attachment(2)));

    assert_eq!(ipam.release_orphan(lost).unwrap(), None);
    assert_eq!(taken(&store).into_keys().collect::<Vec<_>>(), [held]);
}

#[test]
fn a_slot_of_an_earlier_assignment_of_the_same_attachment_is_given_back_too() {
    let store = store();
    let ipam = node(&store, "a");
    let pools = [pool("10.0.0.0/24", 26)];
    let lost = ipam.assign(&request(1, &pools)).unwrap()[0];
    store.backend().delete(&keys::handle(&attachment(1)), None).unwrap();
    let held = ipam.assign(&request(1, &pools)).unwrap()[0];

    assert_eq!(ipam.release_orphan(lost).unwrap(), Some(attachment(1)));
    assert_eq!(ipam.release_orphan(held).unwrap(), None);
}
