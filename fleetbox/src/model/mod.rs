//! The values the API speaks of. A value that exists has been checked.

pub(crate) mod defaults;
pub(crate) mod event;
pub(crate) mod keys;
pub(crate) mod lifetime;
pub(crate) mod mac;
pub mod names;
pub(crate) mod network;
pub(crate) mod ready;
pub mod size;
pub(crate) mod stream;
pub(crate) mod test_name;
pub(crate) mod timing;
