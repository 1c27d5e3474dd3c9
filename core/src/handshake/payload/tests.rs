use super::*;
use proptest::prelude::*;

#[test]
fn an_offer_is_laid_out_as_documented() {
    let bytes = offer().encode().unwrap();
    let mut expected = vec![0x05, 0x78];
    expected.extend(5_000_000_u64.to_be_bytes());
    expected.extend(600_000_u64.to_be_bytes());
    expected.extend([0x01, 10, 8, 0, 7]);
    expected.extend([0; 16]);
    assert_eq!(bytes, expected);
    assert_eq!(bytes.len(), OFFER_LEN);
    assert_eq!(ClientOffer::decode(vec![Suite::Hse], &bytes), Ok(offer()));
}

/// Case 28: the length says nothing about the client.
#[test]
fn every_offer_has_the_same_length() {
    let mut other = offer();
    other.address_v4 = None;
    other.address_v6 = Some("fd00::7".parse().unwrap());
    other.rotation.bytes = u64::MAX;
    assert_eq!(other.encode().unwrap().len(), OFFER_LEN);
}

#[test]
fn a_grant_is_laid_out_as_documented() {
    let bytes = grant().encode().unwrap();
    let mut expected = vec![0x05, 0x78];
    expected.extend(5_000_000_u64.to_be_bytes());
    expected.extend(600_000_u64.to_be_bytes());
    expected.extend([0x03, 10, 8, 0, 7, 24]);
    expected.extend("fd00::7".parse::<Ipv6Addr>().unwrap().octets());
    expected.extend([64, 1, 4, 10, 8, 0, 1, 2, 4, 192, 168, 0, 0, 16, 6]);
    expected.extend("fd01::".parse::<Ipv6Addr>().unwrap().octets());
    expected.push(48);
    assert_eq!(bytes, expected);
    assert_eq!(Grant::decode(&bytes), Ok(grant()));
}

#[test]
fn truncated_payloads_are_refused_and_longer_ones_are_read() {
    let (mut offered, mut granted) = (offer().encode().unwrap(), grant().encode().unwrap());
    for len in 0..offered.len() {
        let result = ClientOffer::decode(vec![], &offered[..len]);
        assert_eq!(result, Err(HandshakeError::Malformed), "{len}");
    }
    for len in 0..granted.len() {
        let result = Grant::decode(&granted[..len]);
        assert_eq!(result, Err(HandshakeError::Malformed), "{len}");
    }
    offered.extend(b"later");
    granted.extend(b"later");
    assert_eq!(ClientOffer::decode(vec![Suite::Hse], &offered), Ok(offer()));
    assert_eq!(Grant::decode(&granted), Ok(grant()));
}

#[test]
fn the_smaller_value_of_both_sides_wins() {
    let offer = ClientOffer {
        rotation: Rotation {
            bytes: 1_000_000,
            interval: Duration::from_secs(3600),
        },
        mtu: 1300,
        ..offer()
    };
    let agreed = grant().agree(&offer);
    assert_eq!(agreed.mtu, 1300);
    assert_eq!(agreed.rotation.bytes, 1_000_000);
    assert_eq!(agreed.rotation.interval, Duration::from_secs(600));
    assert!(agreed.honours(&offer));
    for worse in [
        Grant {
            mtu: 1301,
            ..agreed.clone()
        },
        Grant {
            rotation: Rotation {
                bytes: 1_000_001,
                ..agreed.rotation
            },
            ..agreed.clone()
        },
        Grant {
            rotation: Rotation {
                interval: Duration::from_secs(3601),
                ..agreed.rotation
            },
            ..agreed
        },
    ] {
        assert!(!worse.honours(&offer), "{worse:?}");
    }
}

/// The flag 0x04 in either payload, which says the same about a client whatever its addresses.
#[test]
fn compression_takes_the_wish_of_both_sides() {
    for (client, server) in [(false, false), (false, true), (true, false), (true, true)] {
        let offer = ClientOffer {
            compression: client,
            ..offer()
        };
        let bytes = offer.encode().unwrap();
        assert_eq!(bytes[18], if client { 0x05 } else { 0x01 });
        assert_eq!(
            ClientOffer::decode(vec![Suite::Hse], &bytes),
            Ok(offer.clone())
        );
        let wished = Grant {
            compression: server,
            ..grant()
        };
        let agreed = wished.agree(&offer);
        assert_eq!(agreed.compression, client && server);
        let bytes = agreed.encode().unwrap();
        assert_eq!(bytes[18], if client && server { 0x07 } else { 0x03 });
        assert_eq!(Grant::decode(&bytes), Ok(agreed));
    }
    let forced = Grant {
        compression: true,
        ..grant()
    };
    assert!(!forced.honours(&offer()), "nobody has asked for it");
}

/// Flags of a later minor version.
#[test]
fn flags_that_are_not_known_mean_nothing() {
    let (mut offered, mut granted) = (offer().encode().unwrap(), grant().encode().unwrap());
    offered[18] |= 0xf8;
    granted[18] |= 0xf8;
    assert_eq!(ClientOffer::decode(vec![Suite::Hse], &offered), Ok(offer()));
    assert_eq!(Grant::decode(&granted), Ok(grant()));
}

#[test]
fn rotation_has_a_floor_that_a_peer_must_respect() {
    let hasty = ClientOffer {
        rotation: Rotation {
            bytes: 0,
            interval: Duration::from_nanos(1),
        },
        ..offer()
    };
    let bytes = hasty.encode().unwrap();
    let read = ClientOffer::decode(vec![], &bytes).unwrap();
    assert_eq!(read.rotation.bytes, MIN_ROTATION_BYTES);
    assert_eq!(read.rotation.interval, MIN_ROTATION_INTERVAL);
    assert!(grant().agree(&hasty).honours(&hasty));
    for (at, value) in [(2, MIN_ROTATION_BYTES - 1), (10, 9)] {
        let mut lower = bytes.clone();
        lower[at..at + 8].copy_from_slice(&value.to_be_bytes());
        let result = ClientOffer::decode(vec![], &lower);
        assert_eq!(result, Err(HandshakeError::Malformed), "{value}");
    }
}

#[test]
fn ipv6_is_not_granted_below_its_minimum_mtu() {
    let small = ClientOffer {
        mtu: 1279,
        ..offer()
    };
    let agreed = grant().agree(&small);
    assert_eq!(agreed.address_v6, None);
    assert!(agreed.encode().is_ok());
    let forced = Grant {
        mtu: 1279,
        ..grant()
    };
    assert_eq!(forced.encode(), Err(HandshakeError::Malformed));
}

#[test]
fn addresses_that_no_interface_can_use_are_refused() {
    for net in ["0.0.0.0/0", "10.8.0.0/24", "10.8.0.255/24"] {
        let bad = with_v4(net);
        assert_eq!(bad.encode(), Err(HandshakeError::Malformed), "{net}");
    }
    for net in ["10.8.0.0/31", "10.8.0.255/31", "10.8.0.7/32"] {
        let good = Grant {
            address_v4: Some(net.parse().unwrap()),
            ..grant()
        };
        assert!(good.encode().is_ok(), "{net}");
    }
    let none = Grant {
        address_v4: None,
        address_v6: None,
        ..grant()
    };
    let bytes = none.encode().unwrap();
    assert_eq!(
        Grant::decode(&bytes),
        Ok(none),
        "an empty pool must be told"
    );
}

/// Neither side lets it pass: a server that would take its client over gets no session.
#[test]
fn special_addresses_and_boundless_networks_are_not_assigned() {
    let bytes = grant().encode().unwrap();
    for net in [
        "10.8.0.7/0",
        "10.8.0.7/7",
        "0.1.2.3/32",
        "127.0.0.1/8",
        "169.254.169.254/16",
        "224.0.0.1/24",
        "240.0.0.1/24",
        "255.255.255.255/32",
    ] {
        let bad = with_v4(net);
        assert_eq!(bad.encode(), Err(HandshakeError::Assignment), "{net}");
        let net: Ipv4Net = net.parse().unwrap();
        let mut received = bytes.clone();
        received[19..23].copy_from_slice(&net.addr().octets());
        received[23] = net.prefix_len();
        let result = Grant::decode(&received);
        assert_eq!(result, Err(HandshakeError::Assignment), "{net}");
    }
    for net in [
        "fd00::7/0",
        "fd00::7/31",
        "::/128",
        "::1/128",
        "fe80::1/64",
        "ff02::1/64",
        "::ffff:10.0.0.1/96",
    ] {
        let bad = Grant {
            address_v6: Some(net.parse().unwrap()),
            ..grant()
        };
        assert_eq!(bad.encode(), Err(HandshakeError::Assignment), "{net}");
    }
    for net in ["10.8.0.7/8", "10.8.0.6/30"] {
        assert!(with_v4(net).encode().is_ok(), "{net}");
    }
}

#[test]
fn too_much_to_push_is_an_error_on_either_side() {
    let mut grant = grant();
    grant.push.dns = vec![Ipv4Addr::new(9, 9, 9, 9).into(); MAX_PUSHED_DNS + 1];
    assert_eq!(grant.encode(), Err(HandshakeError::PushedDns));
    grant.push.dns.pop();
    grant.push.routes = vec!["fd00::/64".parse().unwrap(); MAX_PUSHED_ROUTES + 1];
    assert_eq!(grant.encode(), Err(HandshakeError::PushedRoutes));
    grant.push.routes.pop();
    let bytes = grant.encode().unwrap();
    assert_eq!(Grant::decode(&bytes), Ok(grant));
    let mut longer = bytes;
    longer[41] = 9;
    assert_eq!(Grant::decode(&longer), Err(HandshakeError::Malformed));
}

proptest! {
    /// What is accepted can be written, and reads the same again.
    #[test]
    fn arbitrary_payloads_never_panic(
        head in prop::array::uniform32(any::<u8>()),
        tail in prop::collection::vec(any::<u8>(), 0..80),
        valid_terms in any::<bool>(),
    ) {
        let mut bytes = head.to_vec();
        bytes.extend(tail);
        if valid_terms {
            bytes[..2].copy_from_slice(&[0x05, 0x78]);
        }
        if let Ok(offer) = ClientOffer::decode(vec![], &bytes) {
            let again = ClientOffer::decode(vec![], &offer.encode().unwrap());
            prop_assert_eq!(again, Ok(offer));
        }
        if let Ok(grant) = Grant::decode(&bytes) {
            prop_assert_eq!(Grant::decode(&grant.encode().unwrap()), Ok(grant));
        }
    }

    /// One byte of a genuine grant at a time reaches the checks behind the head.
    #[test]
    fn altered_grants_never_panic(at in 0..90_usize, value in any::<u8>()) {
        let mut bytes = grant().encode().unwrap();
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(grant) = Grant::decode(&bytes) {
            prop_assert_eq!(Grant::decode(&grant.encode().unwrap()), Ok(grant));
        }
    }
}

fn offer() -> ClientOffer {
    ClientOffer {
        suites: vec![Suite::Hse],
        rotation: Rotation::default(),
        mtu: 1400,
        address_v4: Some(Ipv4Addr::new(10, 8, 0, 7)),
        address_v6: None,
        compression: false,
    }
}

fn with_v4(net: &str) -> Grant {
    Grant {
        address_v4: Some(net.parse().unwrap()),
        ..grant()
    }
}

fn grant() -> Grant {
    Grant {
        address_v4: Some("10.8.0.7/24".parse().unwrap()),
        address_v6: Some("fd00::7/64".parse().unwrap()),
        mtu: 1400,
        rotation: Rotation::default(),
        push: Push {
            dns: vec!["10.8.0.1".parse().unwrap()],
            routes: vec![
                "192.168.0.0/16".parse().unwrap(),
                "fd01::/48".parse().unwrap(),
            ],
        },
        compression: false,
    }
}
