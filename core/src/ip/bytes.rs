//! Fields of a packet, big-endian, never out of bounds.

use crate::error::DropReason;

/// The `N` bytes at `offset`.
pub(super) fn read<const N: usize>(packet: &[u8], offset: usize) -> Result<[u8; N], DropReason> {
    packet
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or(DropReason::Malformed)
}

/// The byte at `offset`.
pub(super) fn read_u8(packet: &[u8], offset: usize) -> Result<u8, DropReason> {
    read(packet, offset).map(u8::from_be_bytes)
}

/// The 16-bit number at `offset`.
pub(super) fn read_u16(packet: &[u8], offset: usize) -> Result<u16, DropReason> {
    read(packet, offset).map(u16::from_be_bytes)
}

/// The 32-bit number at `offset`.
pub(super) fn read_u32(packet: &[u8], offset: usize) -> Result<u32, DropReason> {
    read(packet, offset).map(u32::from_be_bytes)
}

/// Replaces the bytes at `offset`.
pub(super) fn write<const N: usize>(
    packet: &mut [u8],
    offset: usize,
    value: [u8; N],
) -> Result<(), DropReason> {
    let field = packet
        .get_mut(offset..)
        .and_then(|rest| rest.first_chunk_mut())
        .ok_or(DropReason::Malformed)?;
    *field = value;
    Ok(())
}

/// Replaces the 16-bit number at `offset`.
pub(super) fn write_u16(packet: &mut [u8], offset: usize, value: u16) -> Result<(), DropReason> {
    write(packet, offset, value.to_be_bytes())
}

/// A length as a 16-bit field.
pub(super) fn to_u16(length: usize) -> Result<u16, DropReason> {
    u16::try_from(length).map_err(|_| DropReason::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_beyond_the_end_are_refused() {
        let mut packet = [0; 4];
        for offset in [1, 4, 5, usize::MAX] {
            assert_eq!(read_u32(&packet, offset), Err(DropReason::Malformed));
            assert_eq!(
                write(&mut packet, offset, [1; 4]),
                Err(DropReason::Malformed)
            );
        }
        assert_eq!(write(&mut packet, 0, [1, 2, 3, 4]), Ok(()));
        assert_eq!(read_u32(&packet, 0), Ok(0x0102_0304));
        assert_eq!(read_u16(&packet, 2), Ok(0x0304));
    }
}
