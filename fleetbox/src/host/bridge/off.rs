//! The functions of bridge networks in a build without the feature `bridge`.

use fleetbox_net::Subnet;

use super::{BridgeError, Uplink};
use crate::model::names::Name;
use crate::store::Store;

/// # Errors
/// [`BridgeError::Disabled`], as from every function that would create a bridge.
pub(crate) fn permitted() -> Result<(), BridgeError> {
    Err(BridgeError::Disabled)
}

pub(crate) fn free(_: &Store, _: &Name) -> Result<Subnet, BridgeError> {
    Err(BridgeError::Disabled)
}

pub(crate) fn check(_: &Name, _: Subnet) -> Result<(), BridgeError> {
    Err(BridgeError::Disabled)
}

pub(crate) fn up(_: &Store, _: &Name, _: Subnet) -> Result<Uplink, BridgeError> {
    Err(BridgeError::Disabled)
}

/// Does nothing: a bridge of another program is left to a program that can remove it.
pub(crate) fn down(_: &Store, _: &Name) -> Result<(), BridgeError> {
    Ok(())
}

/// As [`down`].
pub(crate) fn sweep(_: &Store) -> Result<(), BridgeError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::error::Error;
    use crate::host::bridge::BridgeError;
    use crate::host::preflight;
    use crate::model::network::Network;
    use crate::testing::test_support::Home;
    use crate::vm::Vm;

    #[tokio::test]
    async fn a_bridge_network_names_the_feature() {
        let home = Home::new();
        let vm = home.vm(Vm::builder("web")).network(Network::Bridge);
        let error = vm.start().await.unwrap_err();
        assert!(
            matches!(error, Error::Bridge(BridgeError::Disabled)),
            "{error}"
        );
        assert!(error.to_string().contains("feature `bridge`"), "{error}");
        assert!(matches!(preflight::bridge(), Err(BridgeError::Disabled)));
    }
}
