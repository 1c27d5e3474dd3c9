//! Many connections.

use lostlove_tests::rig::{Setup, rng};

use super::{ANY, CLIENT, SERVER, echo};

const CLIENTS: u8 = 100;

/// Case 88.
#[test]
fn a_hundred_clients_are_served() {
    let setup = Setup {
        clients: CLIENTS,
        ..Setup::default()
    };
    let (server, address) = setup.server(SERVER, ANY);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| setup.client(CLIENT, n, address))
        .collect();
    server.await_metric("lostlove_sessions", u64::from(CLIENTS));
    let mut rng = rng();

    for (n, client) in (0..).zip(&clients) {
        echo(&server, client, n, 1400, &mut rng);
    }

    for client in &clients {
        client.signal();
    }
    server.await_metric("lostlove_sessions", 0);
    let stats = server.stop();
    assert_eq!(stats.sessions_established, u64::from(CLIENTS));
    for client in clients {
        client.join();
    }
}
