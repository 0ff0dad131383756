//! What the records of a stream say, as checkers see them.

use shared_registers::crypto::{ClusterId, Digest};
use shared_registers::ids::{Seq, ServerId};
use shared_registers::order;
use shared_registers::record::{Body, Checkpoint, Record};

use crate::history::{RecordSeen, Said, Says};

/// What a record says, as it is found in place `seq` of a copy of `writer`'s stream.
///
/// # Panics
///
/// If it is no record: hosts keep nothing else.
pub(crate) fn describe(
    writer: ServerId,
    seq: Seq,
    bytes: &[u8],
    n: usize,
    cluster: &ClusterId,
) -> RecordSeen {
    let record = Record::decode(bytes, n).expect("hosts keep records only");
    let said = match Body::decode(record.body, n) {
        Ok(Body::Propose(propose)) => {
            let orders = propose.orders.iter();
            let named = orders.map(|o| (o.id, order::digest(cluster, o.id, o.payload)));
            Said::Propose(named.collect())
        }
        Ok(Body::Accept(_)) => Said::Accept,
        Ok(Body::Change(change)) => Said::Change(change.term),
        Err(_) => Said::Malformed,
    };
    let (stamped, seen) = (record.stamp.writer, record.stamp.seen.into_vec());
    let seq = if record.stamp.seq == seq { seq } else { Seq(0) };
    RecordSeen { writer, seq, stamped, seen, digest: Digest::of(&[bytes]), said }
}

/// What a record says to those who read it.
///
/// # Panics
///
/// If it is no record.
pub(crate) fn says(bytes: &[u8], n: usize, cluster: &ClusterId) -> Says {
    let record = Record::decode(bytes, n).expect("hosts keep records only");
    match Body::decode(record.body, n) {
        Ok(Body::Propose(propose)) => {
            let digests = propose.orders.iter();
            let digests = digests.flat_map(|o| order::digest(cluster, o.id, o.payload).0);
            let (term, batch, opens) = (propose.term, propose.batch, !propose.evidence.is_empty());
            let content = Digest::of(&[&digests.collect::<Vec<u8>>()]);
            Says::Propose { term, batch, opens, content }
        }
        Ok(Body::Accept(accept)) => match accept.vote {
            Some(vote) => Says::Vote { term: accept.term, upto: vote.upto, chain: vote.chain },
            None => Says::Nothing,
        },
        Ok(Body::Change(change)) => Says::Change(change.term),
        Err(_) => Says::Nothing,
    }
}

/// The checkpoint that a record claims, if it does (section 6).
pub(crate) fn claim(bytes: &[u8], n: usize) -> Option<Checkpoint> {
    let record = Record::decode(bytes, n).ok()?;
    match Body::decode(record.body, n) {
        Ok(Body::Accept(accept)) => accept.checkpoint,
        _ => None,
    }
}
