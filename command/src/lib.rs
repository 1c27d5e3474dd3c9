//! What the program `lostlove` does beside the files that [`lostlove_host::setup`] makes.

pub mod demo;
pub mod keys;

#[cfg(test)]
mod testing;
