//! Name servers that cannot be taken back at first.

use super::*;

/// Else all names are asked of the tunnel's, where nothing leads any more.
#[test]
fn name_servers_that_cannot_be_taken_back_are_tried_again() {
    namespace::run(|ns| {
        let _uplink = uplink(ns);
        let _tun = open("tun0");
        let etc = ns.file("etc");
        fs::create_dir(&etc).unwrap();
        let mut paths = ns.paths.clone();
        paths.resolv_conf = etc.join("resolv.conf");
        fs::write(&paths.resolv_conf, "nameserver 192.0.2.53\n").unwrap();
        let text = || fs::read_to_string(&paths.resolv_conf).unwrap();
        let mut net = ClientNet::new("tun0", &paths).unwrap();
        let dns = tunnels_own();
        let setup = ClientSetup {
            dns: &dns,
            ..full(&[V4, V6])
        };
        net.apply(&setup).unwrap();
        let before = net.verify().unwrap().name_servers;
        assert!(!before.is_empty());
        let folder = etc.display();
        ns.shell(&format!(
            "mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}"
        ));
        assert!(!net.clear().is_empty());
        let verification = net.verify().unwrap();
        assert!(verification.problem.is_some());
        // The next connection finds its server by them.
        assert_eq!(verification.name_servers, before);
        assert!(text().contains("LostLove"), "{}", text());

        ns.shell(&format!("umount {folder}"));
        assert!(net.verify().unwrap().is_clean());
        assert_eq!(text(), "nameserver 192.0.2.53\n");
        assert!(net.name_servers().is_empty());
        assert!(net.verify().unwrap().is_clean());
        assert!(net.restore().is_empty());
    });
}
