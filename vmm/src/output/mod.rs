//! The output of a guest, for readers that may be slow. Output waits in bounded memory, and neither
//! a vCPU nor the end of a machine waits for a reader that has stopped reading.

mod backlog;
mod writer;

pub use backlog::Backlog;
pub use writer::BoundedWriter;
