//! The deterministic simulator of littoral.

mod chance;
mod disk;

fn main() {}
