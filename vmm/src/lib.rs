//! A minimal virtual machine monitor for stock Linux images.

pub mod boot;
pub mod preflight;
