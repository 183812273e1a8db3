//! Real Linux VMs as test fixtures.

pub mod images;
pub mod names;
pub mod seed;
pub mod size;
pub mod ssh;
pub mod store;

mod error;

pub use error::{Error, Result};
