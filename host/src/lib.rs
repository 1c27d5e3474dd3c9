//! placeholder

#[cfg(target_os = "linux")]
pub mod net;
#[cfg(target_os = "linux")]
pub mod tun;
