//! The bodies of the fuzz targets: each takes bytes, and panics when a promise is broken.
//!
//! They are plain functions, so that a stable compiler can replay the corpora (`cargo test -p
//! lostlove-fuzz`); the crate above this one hands them to libFuzzer:
//!
//! ```text
//! cargo run -p lostlove-fuzz --example write_seeds             start from the seeds
//! cargo +nightly fuzz run wire -- -max_total_time=600           run a target
//! cargo +nightly fuzz cmin wire                                 minimise its corpus
//! ```
//!
//! An input that fails belongs into `corpus/`, under a name that says what it showed.

mod compression;
mod config;
mod endpoint;
mod hello;
mod input;
mod ip;
mod machine;
mod naive;
mod packet;
mod peers;
mod sealed;
pub mod seeds;
mod wire;

pub use compression::compression;
pub use config::config;
pub use endpoint::endpoint;
pub use hello::hello;
pub use ip::ip;
pub use sealed::sealed;
pub use wire::wire;

/// A target's body.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its corpus too.
pub const TARGETS: [(&str, Target); 7] = [
    ("wire", wire),
    ("hello", hello),
    ("ip", ip),
    ("sealed", sealed),
    ("endpoint", endpoint),
    ("compression", compression),
    ("config", config),
];
