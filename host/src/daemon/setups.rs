//! From what the configuration says to what the operating system is asked for.

use lostlove_system::socket::SocketOptions;

/// The configured options of connections, and a mark.
pub(super) fn socket_options(
    configured: &lostlove_config::SocketOptions,
    mark: Option<u32>,
) -> SocketOptions {
    SocketOptions {
        congestion_control: configured.congestion_control.clone(),
        notsent_lowat: configured.notsent_lowat,
        mark,
    }
}
