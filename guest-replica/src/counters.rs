//! What a guest counts, and how status names it and what its host counts.

use shared_registers::host_side::Counter;
use shared_registers::layout::DropReason;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counts since the process started.
        #[derive(Clone, Debug, Default)]
        pub(crate) struct Counters {
            $($(#[$doc])* pub(crate) $name: u64,)*
        }

        impl Counters {
            /// Appends name and value of each.
            pub(crate) fn list(&self, out: &mut Vec<(String, u64)>) {
                $(out.push((stringify!($name).to_owned(), self.$name));)*
            }
        }
    };
}

counters! {
    /// Orders that came from their clients.
    orders_received,
    /// Orders that came from other guests.
    forwards_received,
    /// Orders, and requests for replies, that came while this guest was not at work.
    not_at_work,
    /// Times that records to be read were reclaimed.
    times_behind,
    /// Times that this guest went on from a snapshot.
    snapshots_restored,
    /// Snapshots written to the own store.
    snapshots_stored,
    /// Bytes of them that were not there before.
    snapshot_bytes_stored,
    /// Times that one could not be written.
    snapshot_store_failures,
    /// Bytes of snapshots that were found in the own store.
    snapshot_bytes_loaded,
    /// Manifests and parts there that were not what their names say.
    snapshot_files_damaged,
    /// Bytes of snapshots that were fetched.
    snapshot_bytes_fetched,
    /// Answers of other guests that were not what was asked for.
    snapshot_lies,
    /// Pieces of snapshots sent to other guests.
    pieces_sent,
    /// Their bytes.
    piece_bytes_sent,
    /// Pieces that were asked for on a connection without room.
    pieces_dropped,
    /// Orders handed to a link to another guest.
    forwards_sent,
    /// Orders that waited too long for another guest.
    forwards_dropped,
    /// Replies and other answers to single clients.
    replies_sent,
    /// Their bytes.
    reply_bytes_sent,
    /// Answers whose client has no connection, or one without room.
    dropped_replies,
    /// Deliveries sent to subscribers.
    deliveries_sent,
    /// Their bytes.
    delivery_bytes_sent,
    /// Status questions answered.
    status_sent,
    /// Questions for points in time answered.
    traces_sent,
    /// Connections accepted.
    connections_accepted,
    /// Connections closed because the other end did not authenticate or a bound was reached.
    refused_connections,
    /// Of these, the ones that did not authenticate in time.
    handshake_timeouts,
    /// Connections closed after authentication because of what came on them.
    bad_frames,
    /// Frames written for the host.
    frames_written,
    /// Frames given up because too many waited for the host; the core writes them anew.
    frames_given_up,
    /// Times that the host agent was rung.
    bells_rung,
    /// Times that the host agent's doorbell was lost.
    bells_lost,
}

/// Names of the host's counters, in the order of [`Counter`].
const HOST_COUNTERS: [(Counter, &str); 19] = [
    (Counter::Proposes, "host_records_propose"),
    (Counter::Accepts, "host_records_accept"),
    (Counter::Changes, "host_records_change"),
    (Counter::AdmittedBytes, "host_admitted_bytes"),
    (Counter::OrderMacFailed, "host_orders_mac_failed"),
    (Counter::DroppedUnacknowledged, "host_dropped_unacknowledged"),
    (Counter::DroppedStale, "host_dropped_stale"),
    (Counter::BadHead, "host_bad_heads"),
    (Counter::RecordFramesSent, "host_record_frames_sent"),
    (Counter::RecordFramesReceived, "host_record_frames_received"),
    (Counter::RecordsDuplicate, "host_records_duplicate"),
    (Counter::RecordsOutOfOrder, "host_records_out_of_order"),
    (Counter::LinkBytesSent, "host_link_bytes_sent"),
    (Counter::LinkBytesReceived, "host_link_bytes_received"),
    (Counter::LinkRefused, "host_links_refused"),
    (Counter::LinkUps, "host_link_ups"),
    (Counter::Checkpoints, "host_checkpoints"),
    (Counter::Jumps, "host_jumps"),
    (Counter::EarlierIncarnation, "host_earlier_incarnation"),
];

// A counter that is added there and not named here shows up in this sum.
const _: () = assert!(HOST_COUNTERS.len() == Counter::Dropped as usize);

/// The name under which drops for one reason are reported.
fn dropped_name(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Framing => "host_dropped_framing",
        DropReason::Malformed => "host_dropped_malformed",
        DropReason::Number => "host_dropped_number",
        DropReason::TooLarge => "host_dropped_too_large",
        DropReason::UnknownClient => "host_dropped_unknown_client",
        DropReason::OrderMac => "host_dropped_order_mac",
        DropReason::Change => "host_dropped_change",
    }
}

/// Appends name and value of each of the host's counters.
pub(crate) fn list_host(
    values: &[u64],
    stream_full: bool,
    recovering: Option<u64>,
    out: &mut Vec<(String, u64)>,
) {
    let mut push = |name: &str, index: usize| {
        out.push((name.to_owned(), values.get(index).copied().unwrap_or_default()));
    };
    for (counter, name) in HOST_COUNTERS {
        push(name, counter as usize);
    }
    for reason in DropReason::ALL {
        push(dropped_name(reason), Counter::dropped(reason));
    }
    out.push(("host_stream_full".to_owned(), u64::from(stream_full)));
    // One bit per host that it waits for while it recovers (R6).
    out.push(("host_recovers".to_owned(), u64::from(recovering.is_some())));
    out.push(("host_waits_for".to_owned(), recovering.unwrap_or(0)));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_counter_has_a_name_of_its_own_and_its_own_word() {
        let values: Vec<u64> = (100..132).collect();
        let mut all = Vec::new();
        Counters::default().list(&mut all);
        let own = all.len();
        list_host(&values, true, Some(5), &mut all);
        let names: BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), all.len());
        let words: BTreeSet<_> = all[own..all.len() - 3].iter().map(|(_, value)| value).collect();
        assert_eq!(words.len(), all.len() - own - 3);
        assert!(words.iter().all(|value| **value >= 100));
        let last = [("host_stream_full", 1), ("host_recovers", 1), ("host_waits_for", 5)];
        assert_eq!(all[all.len() - 3..], last.map(|(name, value)| (name.to_owned(), value)));
    }
}
