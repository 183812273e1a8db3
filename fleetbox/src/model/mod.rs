//! The types of the API's values. Their constructors check the values.

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
