//! Opening a device on Linux: `/dev/net/tun` through the `tun` crate, the offloads by ioctl.

#![expect(
    unsafe_code,
    reason = "ioctls, and adopting a descriptor from the tun crate"
)]

use std::ffi::{c_int, c_uint};
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use rustix::ioctl::{self, IntegerSetter, Opcode, Setter, opcode};

use super::{Offloads, TunConfig, TunError, VNET_HEADER_LEN, ethtool};

/// The driver's file.
const DRIVER: &str = "/dev/net/tun";

const TUNSETOFFLOAD: Opcode = opcode::write::<c_uint>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<c_int>(b'T', 216);

const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_USO4: usize = 0x20;
const TUN_F_USO6: usize = 0x40;

/// Opens the device, with virtio headers if any offload is asked for; and which of these it has.
pub(super) fn open(config: &TunConfig<'_>) -> Result<(OwnedFd, Offloads), TunError> {
    let io_error = |source| TunError::from_io(config.name, source);
    let fd = create(config)?;
    rustix::io::ioctl_fionbio(&fd, true).map_err(|errno| io_error(errno.into()))?;
    let wanted = config.offload;
    if !wanted.any() {
        return Ok((fd, Offloads::NONE));
    }
    set_header_len(&fd).map_err(|source| TunError::Io {
        name: config.name.to_owned(),
        source,
    })?;
    let without_udp = Offloads {
        udp: false,
        ..wanted
    };
    // Before Linux 6.2 the whole request fails for its UDP bits.
    let granted = [wanted, without_udp]
        .into_iter()
        .find(|offloads| set_offload(&fd, flags(*offloads)).is_ok());
    // Without any, the kernel finishes what it hands over, and still takes what others finish for it.
    let offloads = granted.unwrap_or(without_udp);
    if offloads.tcp {
        keep_constant_identifications(config.name);
    }
    Ok((fd, offloads))
}

/// Opens the driver's file, without a device.
pub(super) fn check_driver() -> Result<(), TunError> {
    let opened = File::options().read(true).write(true).open(DRIVER);
    opened
        .map(drop)
        .map_err(|source| TunError::from_io(DRIVER, source))
}

/// What the kernel is told that it may hand over unfinished.
const fn flags(offloads: Offloads) -> usize {
    let tcp = if offloads.tcp {
        TUN_F_TSO4 | TUN_F_TSO6
    } else {
        0
    };
    let udp = if offloads.udp {
        TUN_F_USO4 | TUN_F_USO6
    } else {
        0
    };
    TUN_F_CSUM | tcp | udp
}

fn create(config: &TunConfig<'_>) -> Result<OwnedFd, TunError> {
    let mut configuration = tun::Configuration::default();
    configuration
        .tun_name(config.name)
        .platform_config(|platform| {
            platform.vnet_hdr(config.offload.any());
            // Everything else is set through netlink.
            platform.ensure_root_privileges(false);
        });
    let device = tun::create(&configuration).map_err(|error| match error {
        tun::Error::Io(source) => TunError::from_io(config.name, source),
        other => TunError::Io {
            name: config.name.to_owned(),
            source: io::Error::other(other),
        },
    })?;
    // SAFETY: `into_raw_fd` gives up the device's descriptor: it is open, and owned here alone.
    Ok(unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) })
}

/// Lets super-packets whose segments all have the same IPv4 identification through whole, as they
/// come from senders who do not count (RFC 6864, section 4.1). Else the kernel cuts them in front of
/// the device, and each segment costs what a super-packet does. It comes after the offloads, which it
/// depends on.
fn keep_constant_identifications(name: &str) {
    const FEATURE: &str = "tx-tcp-mangleid-segmentation";
    if let Err(error) = ethtool::switch_on(name, FEATURE) {
        tracing::debug!(
            tun = name,
            feature = FEATURE,
            %error,
            "segments with a constant identification come one by one"
        );
    }
}

fn set_header_len(fd: &OwnedFd) -> io::Result<()> {
    let len = VNET_HEADER_LEN as c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int behind the pointer and writes nothing.
    let request = unsafe { Setter::<TUNSETVNETHDRSZ, c_int>::new(len) };
    // SAFETY: as above; on a descriptor of another kind the kernel answers ENOTTY.
    Ok(unsafe { ioctl::ioctl(fd, request) }?)
}

fn set_offload(fd: &OwnedFd, flags: usize) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let request = unsafe { IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags) };
    // SAFETY: as above; on a descriptor of another kind the kernel answers ENOTTY.
    Ok(unsafe { ioctl::ioctl(fd, request) }?)
}
