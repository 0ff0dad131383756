//! `0/4096`: how large a request and its reply are.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use protocol::application::EchoSized;
use shared_registers::cluster::Cluster;

use crate::exit::bad_input;

/// Bytes of a request and of its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes of the request, the header that asks for the reply's size not counted.
    pub(crate) request: u32,
    /// Bytes of the reply.
    pub(crate) reply: u32,
}

impl Shape {
    /// 0/0.
    pub(crate) const EMPTY: Shape = Shape { request: 0, reply: 0 };

    /// The request, as the application `echo-sized` understands it.
    pub(crate) fn payload(self) -> Vec<u8> {
        EchoSized::request(self.request as usize, self.reply)
    }

    /// Whether such requests and replies can pass through the cluster.
    pub(crate) fn check(self, cluster: &Cluster) -> Result<()> {
        let max = cluster.limits.max_payload_bytes;
        let header = EchoSized::HEADER_BYTES;
        if self.request as usize + header > max {
            return Err(bad_input(format!(
                "--payloads {self}: the request and its header of {header} bytes are over \
                 max_payload_bytes = {max} of cluster.toml"
            )));
        }
        if self.reply as usize > max {
            return Err(bad_input(format!(
                "--payloads {self}: the reply is over max_payload_bytes = {max} of cluster.toml"
            )));
        }
        Ok(())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.request, self.reply)
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Shape, String> {
        let number = |text: &str| text.parse::<u32>().ok();
        let sizes = text.split_once('/').and_then(|(a, b)| Some((number(a)?, number(b)?)));
        match sizes {
            Some((request, reply)) => Ok(Shape { request, reply }),
            None => Err("give the bytes of the request and of the reply, such as 0/4096".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_two_numbers() {
        let shape: Shape = "0/4096".parse().unwrap();
        assert_eq!(
            (shape, shape.to_string()),
            (Shape { request: 0, reply: 4096 }, "0/4096".into())
        );
        for text in ["", "0", "0/", "/0", "1/2/3", "-1/0", "4k/4k", "0/4294967296"] {
            assert!(text.parse::<Shape>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_request_carries_its_header() {
        assert_eq!(Shape { request: 0, reply: 258 }.payload(), *b"ECHO\x02\x01\0\0");
        assert_eq!(Shape { request: 4096, reply: 0 }.payload().len(), 4104);
    }
}
