//! Packets between the TUN device and the endpoint.

use std::io;

use lostlove_core::endpoint::{Buffer, Crossing, Endpoint, Sent, TunPacket};
use lostlove_core::ip::VirtioHeader;
use lostlove_core::time::Instant;

use crate::Progress;

/// Packets that the TUN device may deliver before the sockets get their turn: more than local
/// connections leave in its queue, as an urgent packet may be the last one.
const BUDGET_PACKETS: usize = 128;
/// As many, and so many bytes, while they are for so many sessions that none of these has enough for
/// a write: what is written for one packet costs as much as for twenty. That takes some milliseconds.
const MAX_PACKETS: usize = 512;
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// What a turn of the TUN device has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Whether the device has more: [`Progress::Ready`] if it may, else [`Progress::Blocked`].
    pub progress: Progress,
    /// How many packets were read.
    pub packets: usize,
    /// Bytes of the largest of them.
    pub largest: usize,
    /// Whether a connection has got as much to write as it writes at once.
    pub has_full_write: bool,
}

/// One IP packet at a time, each with a virtio header.
pub trait PacketDevice {
    /// Reads one packet into `buf`.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when no packet waits, `InvalidInput` when one that waited cannot be told and is lost;
    /// anything else is fatal for the device.
    fn recv(&self, buf: &mut [u8]) -> io::Result<(usize, VirtioHeader)>;

    /// Writes one packet.
    ///
    /// # Errors
    ///
    /// Any error means that this packet was not taken: `WouldBlock` and `OutOfMemory` because there is
    /// no room now, any other because the device does not take it as it is.
    fn send(&self, packet: &[u8], header: &VirtioHeader) -> io::Result<()>;
}

pub(crate) fn send_packet(device: &impl PacketDevice, packet: &TunPacket<'_>) -> Sent {
    loop {
        match device.send(packet.bytes, &packet.header) {
            Ok(()) => return Sent::Taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::trace!(%error, bytes = packet.bytes.len(), "TUN device refused a packet");
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => Sent::Full,
                    _ => Sent::Refused {
                        os_error: error.raw_os_error(),
                    },
                };
            }
        }
    }
}

/// Reads packets from the TUN device and queues them, for the caller's turn over
/// [`Endpoint::poll_transmit`].
///
/// # Errors
///
/// The device failed for good: also where it has brought nothing but packets that it
/// [cannot tell](PacketDevice::recv).
pub fn drain_device(
    endpoint: &mut Endpoint,
    device: &impl PacketDevice,
    now: Instant,
) -> io::Result<Drained> {
    let mut drained = Drained {
        progress: Progress::Ready,
        packets: 0,
        largest: 0,
        has_full_write: false,
    };
    endpoint.take_full_write();
    let (mut reads, mut bytes) = (0, 0);
    while reads < BUDGET_PACKETS
        || (reads < MAX_PACKETS && bytes < MAX_BYTES && !drained.has_full_write)
    {
        reads += 1;
        let mut buffer = endpoint.take_tun_buffer();
        match device.recv(buffer.unfilled()) {
            Ok((len, header)) => {
                drained.packets += 1;
                bytes += len;
                drained.largest = drained.largest.max(len);
                endpoint.handle_tun(buffer, len, &header, now);
                drained.has_full_write |= endpoint.take_full_write();
                send_reply(endpoint, device);
            }
            Err(error) => {
                endpoint.put_tun_back(buffer);
                match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        drained.progress = Progress::Blocked;
                        break;
                    }
                    io::ErrorKind::Interrupted => {}
                    // Where it brings nothing else, it is not for a packet.
                    io::ErrorKind::InvalidInput
                        if drained.packets > 0 || reads < BUDGET_PACKETS =>
                    {
                        tracing::debug!(%error, "the TUN device has lost a packet");
                    }
                    _ => return Err(error),
                }
            }
        }
    }
    Ok(drained)
}

/// Takes a packet from another event loop of the process. The empty buffer is to go back there, and to
/// be [recycled](Endpoint::recycle).
pub fn take_crossing(
    endpoint: &mut Endpoint,
    device: &impl PacketDevice,
    crossing: Crossing,
    now: Instant,
) -> Buffer {
    let spare = endpoint.handle_crossing(crossing, now);
    send_reply(endpoint, device);
    spare
}

fn send_reply(endpoint: &mut Endpoint, device: &impl PacketDevice) {
    if let Some(reply) = endpoint.take_reply() {
        let packet = TunPacket {
            bytes: reply.as_bytes(),
            header: VirtioHeader::default(),
        };
        send_packet(device, &packet);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use lostlove_core::config::{Client, ClientConfig, Common, Environment, Limits, Rotation};
    use lostlove_core::crypto::{SecretKey, Suite};

    use super::*;

    /// Has so many packets of so many bytes, to a network behind the server.
    struct Device {
        left: Cell<usize>,
        len: usize,
    }

    impl PacketDevice for Device {
        fn recv(&self, buf: &mut [u8]) -> io::Result<(usize, VirtioHeader)> {
            let Some(left) = self.left.get().checked_sub(1) else {
                return Err(io::ErrorKind::WouldBlock.into());
            };
            self.left.set(left);
            buf[..self.len].fill(0);
            Ok((self.len, VirtioHeader::default()))
        }

        fn send(&self, _: &[u8], _: &VirtioHeader) -> io::Result<()> {
            Ok(())
        }
    }

    /// A client without a session: nothing waits for anybody.
    fn client() -> Endpoint {
        let key = SecretKey::from_bytes([1; 32]);
        let config = ClientConfig {
            common: Common {
                suites: Suite::ALL.to_vec(),
                rotation: Rotation {
                    bytes: 1 << 30,
                    interval: Duration::from_secs(600),
                },
                limits: Limits::default(),
                mtu: 1400,
                compression: false,
            },
            client: Client {
                server_key: key.public_key(),
                secret_key: key,
                preshared_key: None,
                routes: Vec::new(),
                reconnect_min: Duration::from_secs(1),
                reconnect_max: Duration::from_secs(30),
            },
        };
        Endpoint::client(config, Environment::default(), Instant::ZERO)
    }

    #[test]
    fn a_turn_brings_a_bounded_number_of_packets_and_bytes() {
        for (len, left, packets, progress) in [
            (1400, 5000, MAX_PACKETS, Progress::Ready),
            (1400, 500, 500, Progress::Blocked),
            (20_000, 5000, 1 + MAX_BYTES / 20_000, Progress::Ready),
            (65_000, 5000, BUDGET_PACKETS, Progress::Ready),
        ] {
            let left = Cell::new(left);
            let device = Device { left, len };
            let drained = drain_device(&mut client(), &device, Instant::ZERO).unwrap();
            assert_eq!((drained.packets, drained.largest), (packets, len));
            assert_eq!(drained.progress, progress);
        }
    }

    /// A kernel gives up a packet whose offload it cannot describe, as of a driver's making.
    #[test]
    fn a_packet_that_the_device_cannot_tell_ends_nothing() {
        struct Faulty {
            reads: Cell<usize>,
            every: usize,
        }
        impl PacketDevice for Faulty {
            fn recv(&self, buf: &mut [u8]) -> io::Result<(usize, VirtioHeader)> {
                self.reads.set(self.reads.get() + 1);
                match self.reads.get() {
                    400.. => Err(io::ErrorKind::WouldBlock.into()),
                    n if n % self.every == 0 => Err(io::ErrorKind::InvalidInput.into()),
                    _ => {
                        buf[..1400].fill(0);
                        Ok((1400, VirtioHeader::default()))
                    }
                }
            }

            fn send(&self, _: &[u8], _: &VirtioHeader) -> io::Result<()> {
                Ok(())
            }
        }
        let drain = |every| {
            let reads = Cell::new(0);
            drain_device(&mut client(), &Faulty { reads, every }, Instant::ZERO)
        };
        let drained = drain(2).unwrap();
        assert_eq!(
            (drained.packets, drained.progress),
            (200, Progress::Blocked)
        );
        // It would be asked for ever.
        let error = drain(1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
