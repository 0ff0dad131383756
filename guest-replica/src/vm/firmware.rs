//! What the host says through fw_cfg: the cluster, this guest's keys, and which guest this is.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

use super::VmError;

const FOLDER: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/difato";
/// The text of `cluster.toml`.
pub(super) const CLUSTER: &str = "opt/difato/cluster";

/// Which guest this is: the item `opt/difato/guest`, as TOML.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// Its server's id.
    pub id: u16,
    /// Bits of its payload address in `cluster.toml` that name the network.
    pub prefix: u8,
    /// The router to other payload networks, if there is one.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// Everything that the host gives.
pub(super) struct Given {
    pub(super) cluster: String,
    pub(super) keys: String,
    pub(super) guest: GuestConfig,
}

/// Reads what the host gives.
pub(super) fn read() -> Result<Given, VmError> {
    let guest: GuestConfig = toml::from_str(&item("guest")?).map_err(|error| VmError::Config {
        item: "opt/difato/guest".to_owned(),
        why: error.message().to_owned(),
    })?;
    Ok(Given { cluster: item("cluster")?, keys: item("keys")?, guest })
}

fn item(name: &str) -> Result<String, VmError> {
    let what = format!("read opt/difato/{name} from fw_cfg");
    fs::read_to_string(Path::new(FOLDER).join(name).join("raw")).map_err(VmError::step(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_who_it_is_and_nothing_that_it_does_not_know() {
        let parse = toml::from_str::<GuestConfig>;
        let guest = parse("id = 2\nprefix = 24\ngateway = \"10.7.0.254\"").unwrap();
        let gateway = Some("10.7.0.254".parse().unwrap());
        assert_eq!(guest, GuestConfig { id: 2, prefix: 24, gateway });
        assert_eq!(parse("id = 0\nprefix = 8").unwrap().gateway, None);
        for wrong in ["id = 0", "prefix = 8", "id = -1\nprefix = 8", "id = 0\nprefix = 8\nx = 1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
