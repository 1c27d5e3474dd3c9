//! A relay between a client and a server that sees what both say.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::Host;

/// One relayed connection.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// What the client sent.
    pub to_server: Vec<u8>,
    /// What the server sent.
    pub to_client: Vec<u8>,
    /// Whether the server has closed its side.
    pub closed: bool,
}

/// Listens on a host's loopback and relays every connection to a server.
pub struct Wiretap {
    /// Where clients are to connect.
    pub address: SocketAddr,
    conversations: Arc<Mutex<Vec<Conversation>>>,
}

impl Wiretap {
    /// Starts to listen. The relay's threads end with their connections, the listener's with the
    /// test.
    pub fn start(host: &Host, server: SocketAddr) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0");
        let listener = host.netns.run(listen).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let conversations = Arc::new(Mutex::new(Vec::new()));
        let (netns, shared) = (host.netns.clone(), Arc::clone(&conversations));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let connect = || TcpStream::connect(server);
                let Ok(server) = netns.run(connect).unwrap() else {
                    continue;
                };
                let index = {
                    let mut all = shared.lock().unwrap();
                    all.push(Conversation::default());
                    all.len() - 1
                };
                relay(&client, &server, &shared, move |all, data| {
                    all[index].to_server.extend(data);
                });
                relay(&server, &client, &shared, move |all, data| {
                    all[index].to_client.extend(data);
                    all[index].closed |= data.is_empty();
                });
            }
        });
        Self {
            address,
            conversations,
        }
    }

    /// What was said so far.
    pub fn conversations(&self) -> Vec<Conversation> {
        self.conversations.lock().unwrap().clone()
    }
}

/// Copies one direction; `note` sees every piece, and an empty one at the end.
fn relay(
    from: &TcpStream,
    to: &TcpStream,
    conversations: &Arc<Mutex<Vec<Conversation>>>,
    note: impl Fn(&mut [Conversation], &[u8]) + Send + 'static,
) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let conversations = Arc::clone(conversations);
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        loop {
            // A reset ends a direction like an orderly close.
            let len = from.read(&mut buffer).unwrap_or(0);
            note(&mut conversations.lock().unwrap(), &buffer[..len]);
            if len == 0 || to.write_all(&buffer[..len]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
