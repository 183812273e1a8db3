//! Reads and changes the interfaces, addresses and routes of the host through rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::error::BridgeError;
use super::ipv6;

/// A network that the host uses, and its purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) network: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) what: String,
}

/// Talks to the kernel about the network namespace of the calling thread. It blocks for
/// milliseconds and uses a separate thread, because the caller may be a thread of a runtime.
pub(super) fn talk<T: Send>(
    work: impl AsyncFnOnce(&Handle) -> Result<T, BridgeError> + Send,
) -> Result<T, BridgeError> {
    let failed = || BridgeError::host("talk to the kernel over rtnetlink");
    let talk = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(failed())?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(failed())?;
            tokio::spawn(connection);
            work(&handle).await
        })
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, talk);
        match thread.map_err(failed())?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn failed(action: &'static str) -> impl FnOnce(rtnetlink::Error) -> BridgeError {
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            error => io::Error::other(error.to_string()),
        };
        BridgeError::host(action)(source)
    }
}

/// All networks that the host has an address in or a route to, except the default route.
pub(super) async fn used(handle: &Handle) -> Result<Vec<Used>, BridgeError> {
    let mut used = Vec::new();
    let mut addresses = handle.address().get().execute();
    let failed_addresses = || failed("list the host's addresses");
    while let Some(message) = addresses.try_next().await.map_err(failed_addresses())? {
        let prefix = message.header.prefix_len;
        for attribute in &message.attributes {
            if let AddressAttribute::Address(IpAddr::V4(address))
            | AddressAttribute::Local(IpAddr::V4(address)) = attribute
            {
                used.push(Used {
                    network: *address,
                    prefix,
                    what: format!("the address {address}/{prefix}"),
                });
            }
        }
    }
    let routes = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut routes = handle.route().get(routes).execute();
    let failed_routes = || failed("list the host's routes");
    while let Some(message) = routes.try_next().await.map_err(failed_routes())? {
        let prefix = message.header.destination_prefix_length;
        // Of the default route, and of the two halves that some VPNs make of it, everything is a
        // part.
        if prefix <= 1 || message.header.kind == RouteType::Multicast {
            continue;
        }
        for attribute in &message.attributes {
            if let RouteAttribute::Destination(RouteAddress::Inet(network)) = attribute {
                used.push(Used {
                    network: *network,
                    prefix,
                    what: format!("the route to {network}/{prefix}"),
                });
            }
        }
    }
    Ok(used)
}

/// The names of all interfaces that begin with `prefix`.
pub(super) async fn links(handle: &Handle, prefix: &str) -> Result<Vec<String>, BridgeError> {
    let mut names = Vec::new();
    let mut links = handle.link().get().execute();
    let failed = || failed("list the host's interfaces");
    while let Some(message) = links.try_next().await.map_err(failed())? {
        for attribute in message.attributes {
            if let LinkAttribute::IfName(name) = attribute
                && name.starts_with(prefix)
            {
                names.push(name);
            }
        }
    }
    Ok(names)
}

/// The index of an interface, or `None` if it does not exist.
async fn index(handle: &Handle, name: &str) -> Result<Option<u32>, BridgeError> {
    let mut links = handle.link().get().match_name(name).execute();
    match links.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(rtnetlink::Error::NetlinkError(message))
            if message.to_io().raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(None)
        }
        Err(error) => Err(failed("look for an interface")(error)),
    }
}

async fn existing(handle: &Handle, name: &str) -> Result<u32, BridgeError> {
    index(handle, name).await?.ok_or_else(|| BridgeError::Host {
        action: "find the interface that was just created",
        source: io::Error::from_raw_os_error(libc::ENODEV),
    })
}

/// Creates a bridge with an address and without IPv6, and brings it up.
pub(super) async fn add_bridge(
    handle: &Handle,
    name: &str,
    mac: [u8; 6],
    address: Ipv4Addr,
    prefix: u8,
) -> Result<(), BridgeError> {
    // Not `LinkBridge::new`, whose bridge is up at once.
    let bridge = LinkMessageBuilder::<LinkBridge>::new(name).address(mac.to_vec());
    let added = handle.link().add(bridge.build()).execute().await;
    added.map_err(failed("create a bridge"))?;
    ipv6::disable(name)?;
    let index = existing(handle, name).await?;
    let given = handle.address().add(index, address.into(), prefix);
    let given = given.execute().await;
    given.map_err(failed("give the bridge its address"))?;
    let change = LinkUnspec::new_with_index(index).up();
    let set = handle.link().set(change.build()).execute().await;
    set.map_err(failed("bring the bridge up"))
}

/// Attaches an interface to a bridge, and brings it up, without IPv6.
pub(super) async fn join(handle: &Handle, name: &str, bridge: &str) -> Result<(), BridgeError> {
    let bridge = existing(handle, bridge).await?;
    let port = existing(handle, name).await?;
    ipv6::disable(name)?;
    let change = LinkUnspec::new_with_index(port).controller(bridge).up();
    let joined = handle.link().set(change.build()).execute().await;
    joined.map_err(failed("attach the tap to the bridge"))
}

/// Removes an interface if it exists.
pub(super) async fn remove(handle: &Handle, name: &str) -> Result<(), BridgeError> {
    let Some(index) = index(handle, name).await? else {
        return Ok(());
    };
    match handle.link().del(index).execute().await {
        Err(rtnetlink::Error::NetlinkError(message))
            if message.to_io().raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(())
        }
        removed => removed.map_err(failed("remove an interface")),
    }
}
