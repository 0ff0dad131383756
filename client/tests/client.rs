//! The client library against a make-believe cluster on loopback.

mod fake;

use std::future::Future;
use std::time::{Duration, Instant};

use client::{Client, ClientConfig, ClientError, ServerAccount, StatusError, query_status};
use fake::{BOUND, Fake, Manner, Manner::*, echo};
use protocol::listener;
use shared_registers::cluster::ClientKeys;
use shared_registers::ids::{ClientId, OrderNumber};
use tokio::time::timeout;

/// Runs a test as the client will run, on one thread, and never for ever.
fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(3 * BOUND, test).await.expect("it takes too long") });
}

async fn start(manners: &[Manner]) -> (Fake, Client) {
    let fake = Fake::start(manners).await;
    let client = fake.client();
    (fake, client)
}

#[test]
fn an_invocation_is_answered_by_the_application() {
    run(async {
        let (fake, client) = start(&[Honest; 3]).await;
        for round in 1..=3u8 {
            let payload = vec![round, 0, 1];
            let reply = client.invoke(payload.clone()).await.unwrap();
            assert_eq!((reply.order.0, reply.bytes), (u64::from(round), echo(&payload)));
            assert_eq!((reply.id.client, reply.id.count), (ClientId(0), u64::from(round)));
        }
        let delivered = client.broadcast(Vec::new()).await.unwrap();
        assert_eq!((delivered.order, fake.delivered().len()), (OrderNumber(4), 4));
        client.close().await;
    });
}

#[test]
fn a_server_that_floods_keeps_no_other_unheard() {
    run(async {
        let (_fake, client) = start(&[Flooding, Honest, Honest]).await;
        for round in 1..=5u8 {
            let reply = client.invoke(vec![round]).await.unwrap();
            assert_eq!(reply.order.0, u64::from(round));
        }
        client.close().await;
    });
}

#[test]
fn f_servers_may_lie_be_silent_be_down_or_hold_other_keys() {
    run(async {
        for bad in [Lying, Silent, Down, WrongKey, Refusing, Flaky] {
            for place in 0..3 {
                let mut manners = [Honest; 3];
                manners[place] = bad;
                let (_fake, client) = start(&manners).await;
                for round in 1..=4u8 {
                    let reply = client.invoke(vec![round, 7]).await.unwrap();
                    assert_eq!((reply.order.0, &reply.bytes[..]), (round.into(), &[7, round][..]));
                }
                client.close().await;
            }
        }
    });
}

#[test]
fn many_in_flight_are_ordered_as_they_were_submitted() {
    run(async {
        let fake = Fake::start(&[Honest; 3]).await;
        let mut config = fake.config();
        config.max_in_flight = 8;
        let client = Client::connect(config);
        let mut pending = Vec::new();
        for i in 0..200u8 {
            pending.push(client.submit(vec![i]).await.unwrap());
        }
        for (i, reply) in pending.into_iter().enumerate() {
            let reply = reply.await.unwrap();
            assert_eq!((reply.order.0, reply.bytes), (i as u64 + 1, vec![i as u8]));
        }
        // Also when those who call wait for room.
        let client = std::sync::Arc::new(client);
        let mut tasks = Vec::new();
        for i in 0..100u8 {
            let client = client.clone();
            tasks.push(tokio::spawn(async move { client.invoke(vec![i, 1]).await.unwrap() }));
        }
        for (i, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.unwrap().order.0, 201 + i as u64);
        }
    });
}

#[test]
fn more_than_max_in_flight_wait() {
    run(async {
        let fake = Fake::start(&[Silent; 3]).await;
        let mut config = fake.config();
        config.max_in_flight = 2;
        config.deadline = Duration::from_millis(150);
        let client = Client::connect(config);
        let first = client.submit(vec![1]).await.unwrap();
        let second = client.submit(vec![2]).await.unwrap();
        assert!(timeout(Duration::from_millis(20), client.submit(vec![3])).await.is_err());
        // Room comes from those who stop waiting, though their orders stay on their way.
        let (third, first) = tokio::join!(client.invoke(vec![3]), first);
        assert!(matches!(first, Err(ClientError::Deadline(_))));
        assert!(matches!(third, Err(ClientError::Deadline(_))));
        assert!(matches!(second.await, Err(ClientError::Deadline(_))));
    });
}

#[test]
fn more_bytes_than_servers_hold_wait() {
    run(async {
        let fake = Fake::start(&[Silent; 3]).await;
        let mut config = fake.config();
        config.deadline = Duration::from_millis(500);
        let client = Client::connect(config);
        let payload = || vec![7; 1 << 20];
        let first = client.submit(payload()).await.unwrap();
        let second = client.submit(payload()).await.unwrap();
        assert!(timeout(Duration::from_millis(20), client.submit(payload())).await.is_err());
        drop((first, second));
        // An empty one has room at any time, and theirs comes when nobody waits for them any more.
        let (empty, third) = tokio::join!(client.submit(Vec::new()), client.submit(payload()));
        assert!(empty.is_ok() && third.is_ok());
    });
}

#[test]
fn wrong_reply_keys_fail_at_once_with_the_reason() {
    run(async {
        let fake = Fake::start(&[WrongKey, Honest, WrongKey]).await;
        let client = fake.client();
        let begun = Instant::now();
        for _ in 0..2 {
            let error = client.invoke(vec![1]).await.unwrap_err();
            assert!(matches!(error, ClientError::WrongKey { servers: 2, n: 3, .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("do not verify") && text.contains("keys/client-0.key"), "{text}");
        }
        assert!(begun.elapsed() < BOUND / 2);
    });
}

#[test]
fn wrong_reply_keys_end_a_subscription_with_the_reason() {
    run(async {
        let fake = Fake::start(&[WrongKey, Honest, WrongKey]).await;
        let client = fake.client();
        let begun = Instant::now();
        // The second begins after that was found out.
        for _ in 0..2 {
            let mut subscription = client.subscribe(OrderNumber(1));
            for _ in 0..2 {
                let error = subscription.next().await.unwrap_err();
                assert!(matches!(error, ClientError::WrongKey { servers: 2, n: 3, .. }), "{error}");
            }
        }
        assert!(begun.elapsed() < BOUND / 2);
    });
}

#[test]
fn the_deadline_says_what_each_server_did() {
    run(async {
        let fake = Fake::start(&[Down, Silent, WrongKey]).await;
        let mut config = fake.config();
        config.deadline = Duration::from_millis(250);
        let client = Client::connect(config);
        let error = client.invoke(vec![1]).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "no 2 of 3 servers agreed within 250 ms: server 0 unreachable (Connection refused), \
             server 1 did not answer, server 2's MAC does not verify (the key in \
             keys/client-0.key is not the one that it holds)"
        );
        let ClientError::Deadline(error) = error else { panic!("{error}") };
        assert_eq!(error.servers[1], ServerAccount::Silent);
    });
}

#[test]
fn a_lone_answer_is_told_and_not_believed() {
    run(async {
        let fake = Fake::start(&[Honest, Down, Down]).await;
        let mut config = fake.config();
        config.deadline = Duration::from_millis(250);
        let error = Client::connect(config).invoke(vec![1]).await.unwrap_err();
        assert!(error.to_string().contains("server 0 says that it was delivered as 1"), "{error}");
    });
}

#[test]
fn an_order_that_the_hosts_refuse_fails_with_the_reason() {
    run(async {
        let (_fake, client) = start(&[Refusing; 3]).await;
        let error = client.invoke(vec![1]).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused { servers: 2, .. }), "{error}");
    });
}

#[test]
fn a_payload_over_the_limit_fails_at_once() {
    run(async {
        let fake = Fake::start(&[Down; 3]).await;
        let limit = fake.cluster.limits.max_payload_bytes;
        let error = fake.client().invoke(vec![0; limit + 1]).await.unwrap_err();
        assert!(matches!(error, ClientError::TooLarge { limit: l, .. } if l == limit), "{error}");
    });
}

#[test]
fn the_largest_payload_passes() {
    run(async {
        let (fake, client) = start(&[Honest; 3]).await;
        let payload: Vec<_> = (0..fake.cluster.limits.max_payload_bytes).map(|i| i as u8).collect();
        assert_eq!(client.invoke(payload.clone()).await.unwrap().bytes, echo(&payload));
    });
}

#[test]
fn closing_ends_what_is_in_flight() {
    run(async {
        let (_fake, client) = start(&[Silent; 3]).await;
        let pending = client.submit(vec![1]).await.unwrap();
        let mut subscription = client.subscribe(OrderNumber(1));
        client.close().await;
        assert!(matches!(pending.await, Err(ClientError::Closed)));
        assert!(matches!(subscription.next().await, Err(ClientError::Closed)));
    });
}

#[test]
fn a_subscription_has_every_message_in_order_from_where_it_began() {
    run(async {
        for bad in [Honest, Lying, Silent, Down, WrongKey] {
            for place in 0..3 {
                let mut manners = [Honest; 3];
                manners[place] = bad;
                let (_fake, client) = start(&manners).await;
                for i in 0..3 {
                    client.broadcast(vec![i]).await.unwrap();
                }
                let mut subscription = client.subscribe(OrderNumber(2));
                client.broadcast(vec![3]).await.unwrap();
                for i in 1..4u8 {
                    let message = subscription.next().await.unwrap();
                    assert_eq!((message.order.0, message.payload), (u64::from(i) + 1, vec![i]));
                    assert_eq!((message.client, message.count), (ClientId(0), u64::from(i) + 1));
                }
                client.close().await;
            }
        }
    });
}

/// The first `total` messages, all delivered.
async fn broadcast(client: &Client, total: u64) {
    let mut pending = Vec::new();
    for i in 0..total {
        pending.push(client.submit(i.to_le_bytes().to_vec()).await.unwrap());
    }
    for reply in pending {
        reply.await.unwrap();
    }
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn servers_send_no_more_than_a_subscriber_reads_and_nothing_twice() {
    run(async {
        let (fake, client) = start(&[Honest; 3]).await;
        let total = 10_000;
        broadcast(&client, total).await;
        let mut subscription = client.subscribe(OrderNumber(1));
        // One window in the listener, and one that waits for the subscriber.
        let window = listener::WINDOW_MESSAGES;
        until(|| fake.sent().iter().all(|sent| *sent >= window)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(fake.sent().iter().all(|sent| *sent <= 2 * window), "{:?}", fake.sent());
        for i in 0..total {
            assert_eq!(subscription.next().await.unwrap().order.0, i + 1);
        }
        until(|| fake.sent().iter().all(|sent| *sent >= total)).await;
        assert_eq!(fake.sent(), [total; 3]);
    });
}

#[test]
fn servers_stop_when_a_subscription_is_dropped() {
    run(async {
        let (fake, client) = start(&[Honest; 3]).await;
        broadcast(&client, 10).await;
        let subscription = client.subscribe(OrderNumber(1));
        until(|| fake.sent() == [10; 3]).await;
        let other = client.subscribe(OrderNumber(6));
        until(|| fake.sent() == [15; 3]).await;
        // This one is over already.
        drop(subscription);
        broadcast(&client, 1).await;
        until(|| fake.sent() == [16; 3]).await;
        drop(other);
        until(|| fake.subscribed() == 0).await;
        broadcast(&client, 10).await;
        assert_eq!(fake.sent(), [16; 3]);
    });
}

#[test]
fn a_slow_subscriber_misses_nothing_and_a_new_one_takes_its_place() {
    run(async {
        let (_fake, client) = start(&[Honest; 3]).await;
        let mut subscription = client.subscribe(OrderNumber(1));
        let total = 5000;
        broadcast(&client, total).await;
        for i in 0..total {
            let message = subscription.next().await.unwrap();
            assert_eq!((message.order.0, message.payload), (i + 1, i.to_le_bytes().to_vec()));
        }
        let mut other = client.subscribe(OrderNumber(total));
        assert!(matches!(subscription.next().await, Err(ClientError::Replaced)));
        drop(subscription);
        assert_eq!(other.next().await.unwrap().order.0, total);
    });
}

#[test]
fn the_operator_hears_from_every_server() {
    run(async {
        let fake = Fake::start(&[Honest, WrongKey, Down, Silent, Honest]).await;
        let wait = Duration::from_millis(300);
        let answers = query_status(&fake.cluster, &fake.operator_keys(), wait).await;
        assert_eq!(answers[0].as_ref().unwrap().id.0, 0);
        assert_eq!(answers[1], Err(StatusError::WrongKey));
        assert_eq!(answers[2], Err(StatusError::Unreachable("Connection refused".into())));
        assert_eq!(answers[3], Err(StatusError::TimedOut));
        assert_eq!(answers[4].as_ref().unwrap().id.0, 4);
    });
}

#[test]
fn a_configuration_is_loaded_and_its_keys_are_counted() {
    run(async {
        use std::os::unix::fs::PermissionsExt;
        let fake = Fake::start(&[Honest; 3]).await;
        let dir = tempfile::tempdir().unwrap();
        let keys_dir = dir.path().join("keys");
        std::fs::create_dir(&keys_dir).unwrap();
        let toml = toml::to_string(&fake.cluster).unwrap();
        std::fs::write(dir.path().join("cluster.toml"), toml).unwrap();
        let write_keys = |keys: &ClientKeys| {
            let path = keys_dir.join("client-0.key");
            std::fs::write(&path, toml::to_string(keys).unwrap()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        write_keys(&fake.keys());
        let client = Client::connect(ClientConfig::load(dir.path(), 0).unwrap());
        assert_eq!(client.invoke(vec![1, 2]).await.unwrap().bytes, [2, 1]);
        assert!(ClientConfig::load(dir.path(), 9).is_err());
        let mut keys = fake.keys();
        keys.replies.pop();
        write_keys(&keys);
        let error = ClientConfig::load(dir.path(), 0).err().unwrap().to_string();
        assert!(error.contains("2 reply keys") && error.contains("3 servers"), "{error}");
    });
}
