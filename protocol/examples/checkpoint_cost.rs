//! What a checkpoint costs: a table of so many megabytes of values, of which every checkpoint finds
//! some thousands changed. `cargo run --release -p protocol --example checkpoint_cost [MiB]`.

use std::time::Instant;

use protocol::application::KeyValue;
use protocol::replica::{Config, Input, Replica};
use protocol::snapshot::Snapshot;
use shared_registers::crypto::ClusterId;
use shared_registers::ids::{Batch, ClientId, Micros, OrderId, Seq, ServerId, Term};
use shared_registers::order::{self, OrderView};
use shared_registers::record::{Body, Propose, Record, Stamp};

const CLUSTER: ClusterId = ClusterId([1; 32]);
const ORDERS: u64 = 4000;
const VALUE_BYTES: usize = 4096;
const BATCH: u64 = 250;
const CLIENTS: u32 = 64;

fn config(checkpoint_weight: u64) -> Config {
    Config {
        me: ServerId(0),
        // A cluster of one, in which a proposal commits itself.
        n: 1,
        clients: CLIENTS,
        cluster: CLUSTER,
        max_payload_bytes: 1 << 16,
        window: 16,
        checkpoint_weight,
        soft_batch_bytes: 1 << 20,
        change: Micros(1 << 40),
        change_cap: Micros(1 << 40),
        host_down: Micros(1 << 40),
        retain_messages: 10_000,
        retain_bytes: 64 << 20,
    }
}

struct World {
    replica: Replica,
    seq: u64,
    counts: [u64; CLIENTS as usize],
    keys: u64,
}

impl World {
    /// Proposes one batch that puts so many keys from `first` on, and returns how long it took.
    fn put(&mut self, first: u64, count: u64) -> f64 {
        let value = vec![first as u8; VALUE_BYTES];
        let orders: Vec<_> = (first..first + count).map(|key| self.order(key, &value)).collect();
        let views = orders.iter().map(|(id, payload)| {
            let digest = order::digest(&CLUSTER, *id, payload);
            OrderView { id: *id, digest, mac: &[0; 32], payload }
        });
        let (term, batch, orders) = (Term(0), Batch(self.seq + 1), views.collect());
        let mut body = Vec::new();
        Body::Propose(Propose { term, batch, evidence: vec![], orders }).encode(&mut body);
        let (writer, seq) = (ServerId(0), Seq(self.seq + 1));
        let seen = [self.seq].into();
        let stamp = Stamp { writer, seq, time: Micros(0), incarnation: 0, seen };
        self.seq += 1;
        let start = Instant::now();
        let record = Record { stamp, body: &body };
        self.replica.step(Micros(0), Input::Record(record), &mut Vec::new());
        start.elapsed().as_secs_f64()
    }

    fn order(&mut self, key: u64, value: &[u8]) -> (OrderId, Vec<u8>) {
        let client = (key % u64::from(CLIENTS)) as u32;
        let count = &mut self.counts[client as usize];
        *count += 1;
        let id = OrderId { client: ClientId(client), session: 1, count: *count };
        // Spread over all keys, and the same ones again from round to round.
        let key = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.keys;
        (id, KeyValue::put(&key.to_le_bytes(), value))
    }
}

fn main() {
    let mib = std::env::args().nth(1).map_or(64, |mib| mib.parse().expect("a number of MiB"));
    let keys = (mib << 20) / VALUE_BYTES as u64;
    let weight = ORDERS * order::weight(VALUE_BYTES + 11);
    let replica = Replica::new(config(weight), Box::new(KeyValue::default()));
    let mut world = World { replica, seq: 0, counts: [0; CLIENTS as usize], keys };
    let mut next = 0;
    while next < keys * 3 {
        world.put(next, BATCH);
        next += BATCH;
    }
    println!("a table of {mib} MiB in {keys} values of {VALUE_BYTES} bytes");
    for _ in 0..3 {
        let times: Vec<_> = (0..ORDERS / BATCH)
            .map(|_| {
                next += BATCH;
                world.put(next, BATCH)
            })
            .collect();
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        let (median, worst) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        let start = Instant::now();
        let made = world.replica.claimable_snapshot();
        let manifest = start.elapsed().as_secs_f64();
        let size = made.as_deref().map_or(0, Snapshot::bytes);
        println!(
            "{ORDERS} orders: {:.0} ms; the one that captures {:.1} ms, others {:.1} ms; \
             its manifest {:.2} ms; snapshot {} MiB in {} parts",
            1e3 * times.iter().sum::<f64>(),
            1e3 * worst,
            1e3 * median,
            1e3 * manifest,
            size >> 20,
            made.map_or(0, |made| made.parts().len()),
        );
    }
}
