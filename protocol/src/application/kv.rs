//! A table of keys and values, for tests of large states and as an example of an application with
//! one.
//!
//! A request is a letter, the length of a key (`u16`, little-endian), the key, and after `P` the
//! value:
//!
//! | request | reply |
//! |---|---|
//! | `P` put | `K`: done; `F`: full, nothing changed |
//! | `G` get | `V` and the value; `N`: there is none |
//! | `D` delete | `K`: done; `N`: there was none |
//!
//! Anything else is answered `?`. Keys are spread over buckets by their digest; a bucket's chunk of
//! a snapshot is made anew only if the bucket changed.

use std::collections::BTreeMap;

use bytes::Bytes;
use shared_registers::codec::{Malformed, Put, Reader};
use shared_registers::crypto::Digest;

use super::{Application, Delivered};
use crate::limits::KV_BYTES;

/// Buckets: so many that one change makes little anew, and so few that a manifest stays short.
const BUCKETS: u16 = 1 << 14;
/// What a key costs on top of its bytes and its value's: a bound on how many there are.
const ENTRY_COST: usize = 64;

#[derive(Default)]
struct Bucket {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What a snapshot holds of it, until it changes.
    chunk: Option<Bytes>,
}

/// A table of keys and values.
#[derive(Default)]
pub struct KeyValue {
    /// Those that were ever used.
    buckets: BTreeMap<u16, Bucket>,
    bytes: usize,
}

fn bucket_of(key: &[u8]) -> u16 {
    let digest = Digest::of(&[key]);
    u16::from_le_bytes([digest.0[0], digest.0[1]]) % BUCKETS
}

fn cost(key: &[u8], value: &[u8]) -> usize {
    ENTRY_COST + key.len() + value.len()
}

impl KeyValue {
    /// The request that puts `value` at `key`, of at most 65,535 bytes.
    pub fn put(key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut request = Self::request(b'P', key);
        request.extend_from_slice(value);
        request
    }

    /// The request for the value at `key`.
    pub fn get(key: &[u8]) -> Vec<u8> {
        Self::request(b'G', key)
    }

    /// The request that deletes `key`.
    pub fn delete(key: &[u8]) -> Vec<u8> {
        Self::request(b'D', key)
    }

    fn request(what: u8, key: &[u8]) -> Vec<u8> {
        let mut request = vec![what];
        request.put_u16(key.len() as u16);
        request.extend_from_slice(key);
        request
    }

    fn act(&mut self, request: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut from = Reader::new(request);
        let what = from.u8()?;
        let len = usize::from(from.u16()?);
        let (key, value) = (from.bytes(len)?, from.bytes(from.left())?);
        let bucket = self.buckets.entry(bucket_of(key)).or_default();
        let old = bucket.entries.get(key);
        Ok(match what {
            b'G' if value.is_empty() => match old {
                Some(value) => [b"V", &value[..]].concat(),
                None => b"N".to_vec(),
            },
            b'D' if value.is_empty() => match bucket.entries.remove(key) {
                Some(value) => {
                    self.bytes -= cost(key, &value);
                    bucket.chunk = None;
                    b"K".to_vec()
                }
                None => b"N".to_vec(),
            },
            b'P' => {
                let after = self.bytes - old.map_or(0, |old| cost(key, old)) + cost(key, value);
                if after > KV_BYTES {
                    return Ok(b"F".to_vec());
                }
                self.bytes = after;
                bucket.chunk = None;
                bucket.entries.insert(key.to_vec(), value.to_vec());
                b"K".to_vec()
            }
            _ => return Err(Malformed),
        })
    }
}

impl Bucket {
    fn chunk(&mut self) -> Bytes {
        let entries = &self.entries;
        let made = self.chunk.get_or_insert_with(|| {
            let mut chunk = Vec::new();
            for (key, value) in entries {
                chunk.put_u32(key.len() as u32);
                chunk.put_u32(value.len() as u32);
                chunk.extend_from_slice(key);
                chunk.extend_from_slice(value);
            }
            chunk.into()
        });
        made.clone()
    }
}

impl Application for KeyValue {
    fn execute(&mut self, message: &Delivered<'_>) -> Vec<u8> {
        self.act(message.payload).unwrap_or_else(|Malformed| b"?".to_vec())
    }

    /// One chunk per bucket that is not empty.
    fn snapshot(&mut self) -> Vec<Bytes> {
        let used = self.buckets.values_mut().filter(|bucket| !bucket.entries.is_empty());
        used.map(Bucket::chunk).collect()
    }

    fn restore(&mut self, chunks: &[Bytes]) -> Result<(), Malformed> {
        let mut table = KeyValue::default();
        for chunk in chunks {
            let mut from = Reader::new(chunk);
            while from.left() > 0 {
                let (key, value) = (from.u32()? as usize, from.u32()? as usize);
                let (key, value) = (from.bytes(key)?, from.bytes(value)?);
                table.bytes += cost(key, value);
                let bucket = table.buckets.entry(bucket_of(key)).or_default();
                if bucket.entries.insert(key.to_vec(), value.to_vec()).is_some() {
                    return Err(Malformed);
                }
                bucket.chunk = Some(chunk.clone());
            }
        }
        *self = table;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared_registers::ids::{Micros, OrderId, OrderNumber};

    fn execute(table: &mut KeyValue, payload: &[u8]) -> Vec<u8> {
        let (order, time) = (OrderNumber(7), Micros(0));
        table.execute(&Delivered { order, id: OrderId::default(), time, payload })
    }

    #[test]
    fn what_is_put_is_got_until_it_is_deleted() {
        let mut table = KeyValue::default();
        assert_eq!(execute(&mut table, &KeyValue::get(b"a")), b"N");
        assert_eq!(execute(&mut table, &KeyValue::put(b"a", b"one")), b"K");
        assert_eq!(execute(&mut table, &KeyValue::put(b"a", b"two")), b"K");
        assert_eq!(execute(&mut table, &KeyValue::get(b"a")), b"Vtwo");
        assert_eq!(table.bytes, cost(b"a", b"two"));
        assert_eq!(execute(&mut table, &KeyValue::delete(b"a")), b"K");
        assert_eq!(execute(&mut table, &KeyValue::delete(b"a")), b"N");
        for nonsense in [&b""[..], b"X", b"P\x05\0ab", b"G\x01\0ab", b"D\x01\0ab"] {
            assert_eq!(execute(&mut table, nonsense), b"?");
        }
        assert_eq!(table.bytes, 0);
    }

    #[test]
    fn a_snapshot_comes_back_and_shares_what_did_not_change() {
        let mut table = KeyValue::default();
        for key in 0..40_000u32 {
            execute(&mut table, &KeyValue::put(&key.to_le_bytes(), &[7; 20]));
        }
        let before = table.snapshot();
        execute(&mut table, &KeyValue::put(&5u32.to_le_bytes(), b"new"));
        let after = table.snapshot();
        let same = before.iter().zip(&after).filter(|(a, b)| a.as_ptr() == b.as_ptr()).count();
        assert_eq!((before.len(), same), (after.len(), after.len() - 1));
        let mut back = KeyValue::default();
        back.restore(&after).unwrap();
        assert_eq!((back.snapshot(), back.bytes), (after.clone(), table.bytes));
        assert!(back.restore(&[after[0].slice(1..)]).is_err());
        assert!(back.restore(&[after[0].clone(), after[0].clone()]).is_err());
        assert_eq!(back.snapshot(), after, "what is refused changes nothing");
    }
}
