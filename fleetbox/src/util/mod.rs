//! Small things every room may use.

pub(crate) mod fs;
pub(crate) mod task;
pub(crate) mod text;
