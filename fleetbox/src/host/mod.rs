//! What this host has and can do.

pub(crate) mod bridge;
pub mod budget;
pub mod preflight;
pub(crate) mod resources;
