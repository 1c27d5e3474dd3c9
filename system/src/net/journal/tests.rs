use super::*;
use crate::net::namespace::turn;

#[test]
fn what_was_made_and_not_undone_survives_the_process() {
    let _turn = turn();
    let (_directory, paths) = scratch();
    let mut journal = started("tun0", &paths);
    journal.made(&nft("a")).unwrap();
    journal.made(&nft("b")).unwrap();
    journal.undone(&nft("a")).unwrap();
    drop(journal);

    assert_eq!(changes(&paths), [nft("b")]);
}

/// What comes after it is neither lost nor taken for its end.
#[test]
fn a_line_cut_short_is_left_out() {
    let _turn = turn();
    let (_directory, paths) = scratch();
    let mut journal = started("tun0", &paths);
    journal.made(&nft("a")).unwrap();
    let cut = b"{\"made\":{\"nft\":{\"tab";
    journal.file.write_all(cut).unwrap();
    drop(journal);

    let mut journal = Journal::open("tun0", &paths).unwrap();
    assert!(journal.changes().eq([&nft("a")]) && !journal.was_damaged());
    journal.made(&nft("b")).unwrap();
    drop(journal);

    assert_eq!(changes(&paths), [nft("a"), nft("b")]);
}

/// Sessions come and go, and others read all of it each time.
#[test]
fn a_record_does_not_grow_with_what_was_taken_back() {
    let _turn = turn();
    let (_directory, paths) = scratch();
    let mut journal = started("tun0", &paths);
    journal.made(&nft("a")).unwrap();
    let tunnel = Tunnel::new(&[]);
    for n in 0..2000 {
        journal.set_tunnel(tunnel.with_session(n % 2 == 0)).unwrap();
        journal.made(&nft("b")).unwrap();
        journal.undone(&nft("b")).unwrap();
    }
    journal.made(&nft("c")).unwrap();

    assert!(fs::metadata(&journal.path).unwrap().len() < 2 * SHORT);
    assert!(journal.is_in_place());
    let others = started("tun1", &paths);
    assert_eq!(others.others(), [nft("a"), nft("c")]);
    assert_eq!(others.other_tunnels(), [tunnel]);
    let refused = Journal::open("tun0", &paths);
    assert!(matches!(refused, Err(NetError::AlreadyRunning { .. })));
    drop(journal);
    assert_eq!(changes(&paths), [nft("a"), nft("c")]);
    let left = fs::read_dir(&paths.state_dir).unwrap();
    let names = left.map(|entry| entry.unwrap().file_name());
    assert!(
        names
            .into_iter()
            .all(|name| !name.to_string_lossy().ends_with(DRAFT))
    );
}

#[test]
fn a_live_record_is_refused_by_name_of_its_process() {
    let _turn = turn();
    let (_directory, paths) = scratch();
    let _journal = started("tun0", &paths);

    let refused = Journal::open("tun0", &paths);

    let expected = format!("\"tun0\" is already running (pid {})", std::process::id());
    assert_eq!(refused.unwrap_err().to_string(), expected);
    assert!(Journal::open("tun1", &paths).is_ok());
}

/// Who was killed a moment ago may still be ending.
#[test]
fn a_record_that_becomes_free_is_waited_for() {
    let _turn = turn();
    let (_directory, mut paths) = scratch();
    let journal = started("tun0", &paths);
    paths.patience = Patience::default();
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(journal);
    });
    assert!(Journal::open("tun0", &paths).is_ok());
    ending.join().unwrap();
}

#[test]
fn who_waits_for_a_lock_is_interrupted_with_the_start() {
    let _turn = turn();
    let (_directory, mut paths) = scratch();
    let journal = started("tun0", &paths);
    let _shared = journal.lock_shared(&paths.patience).unwrap();
    paths.patience = Patience::of(Duration::from_secs(3600));
    paths.patience.end();
    let refused = Journal::open("tun0", &paths);
    assert!(matches!(refused, Err(NetError::Interrupted)));
    let refused = journal.lock_shared(&paths.patience);
    assert!(matches!(refused, Err(NetError::Interrupted)));
}

#[test]
fn the_file_is_private_and_goes_with_the_last_change() {
    let _turn = turn();
    let (_directory, paths) = scratch();
    let mut journal = started("tun0", &paths);
    journal.made(&nft("a")).unwrap();
    let path = journal.path.clone();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

    journal.finish().unwrap();
    assert!(path.exists());
    journal.undone(&nft("a")).unwrap();
    journal.finish().unwrap();

    assert!(!path.exists());
}

/// A renamed record, or an inode number or a cookie that is used again, undoes nothing.
#[test]
fn what_was_made_elsewhere_or_before_the_boot_is_not_undone_here() {
    let _turn = turn();
    let dns = Change::Dns(crate::net::dns::Dns::file("/etc/resolv.conf".as_ref()));
    let other = "another";
    for (boot, namespace, left) in [
        (None, None, vec![nft("a"), dns.clone()]),
        (None, Some(other), vec![]),
        (Some(other), None, vec![dns.clone()]),
        (Some(other), Some(other), vec![dns.clone()]),
    ] {
        let (_directory, paths) = scratch();
        let mut journal = Journal::open("tun0", &paths).unwrap();
        let place = journal.place.clone();
        journal.place.boot = boot.map_or(place.boot, str::to_owned);
        journal.place.namespace = namespace.map_or(place.namespace, str::to_owned);
        journal.restart().unwrap();
        journal.made(&nft("a")).unwrap();
        journal.made(&dns).unwrap();
        drop(journal);

        assert_eq!(changes(&paths), left, "{boot:?} {namespace:?}");
    }
}

#[test]
fn an_unreadable_record_is_set_aside_and_what_it_says_is_kept() {
    let _turn = turn();
    let (_directory, paths) = scratch();
    let mut journal = started("tun0", &paths);
    journal.made(&nft("a")).unwrap();
    journal.write("nonsense\n").unwrap();
    journal.made(&nft("b")).unwrap();
    let (path, text) = (journal.path.clone(), fs::read(&journal.path).unwrap());
    drop(journal);

    let journal = Journal::open("tun0", &paths).unwrap();

    assert!(journal.was_damaged());
    assert!(journal.changes().eq([&nft("a"), &nft("b")]));
    let aside = format!("{}{UNREADABLE}", path.display());
    assert_eq!(fs::read(aside).unwrap(), text);
    drop(journal);
    assert_eq!(changes(&paths), [nft("a"), nft("b")]);
    fs::write(&path, "\0\0\0\0\n").unwrap();
    assert_eq!(changes(&paths), []);
}

#[test]
fn records_of_the_dead_are_found_and_those_of_the_living_are_not() {
    let _turn = turn();
    let (_directory, paths) = scratch();
    let _lives = started("tun1", &paths);
    let mut dead = started("a.b", &paths);
    dead.made(&nft("a")).unwrap();
    drop(dead);
    let mut elsewhere = started("tun3", &paths);
    elsewhere.place.namespace = "another".to_owned();
    elsewhere.path.set_file_name("tun3.another.json");
    elsewhere.put_back().unwrap();
    let mut before = started("tun4", &paths);
    before.place.namespace = "one".to_owned();
    before.place.boot = "another".to_owned();
    before.path.set_file_name("tun4.one.json");
    before.put_back().unwrap();
    drop((elsewhere, before));
    fs::remove_file(
        paths
            .state_dir
            .join(file_name("tun3", &Place::current(&paths))),
    )
    .unwrap();
    fs::remove_file(
        paths
            .state_dir
            .join(file_name("tun4", &Place::current(&paths))),
    )
    .unwrap();

    let journal = Journal::open("tun0", &paths).unwrap();

    let mut found: Vec<_> = journal.abandoned().map(Result::unwrap).collect();
    found.sort_by(|one, other| one.tun.cmp(&other.tun));
    let names: Vec<_> = found.iter().map(Journal::tun).collect();
    assert_eq!(names, ["a.b", "tun4"]);
    assert!(found[0].changes().eq([&nft("a")]));
}

#[test]
fn a_record_that_was_taken_away_is_made_again() {
    let _turn = turn();
    let (_directory, paths) = scratch();
    let mut journal = started("tun0", &paths);
    journal.made(&nft("a")).unwrap();
    assert!(journal.is_in_place());
    fs::remove_dir_all(&paths.state_dir).unwrap();
    assert!(!journal.is_in_place());
    drop(journal.lock_shared(&paths.patience).unwrap());

    journal.put_back().unwrap();

    assert!(journal.is_in_place());
    assert!(Journal::open("tun0", &paths).is_err());
    drop(journal);
    assert_eq!(changes(&paths), [nft("a")]);
}

fn scratch() -> (tempfile::TempDir, Paths) {
    let directory = tempfile::tempdir().unwrap();
    let paths = Paths {
        state_dir: directory.path().join("state"),
        patience: Patience::of(Duration::ZERO),
        ..Paths::default()
    };
    (directory, paths)
}

fn started(tun: &str, paths: &Paths) -> Journal {
    let mut journal = Journal::open(tun, paths).unwrap();
    journal.restart().unwrap();
    journal
}

fn changes(paths: &Paths) -> Vec<Change> {
    let journal = Journal::open("tun0", paths).unwrap();
    journal.changes().cloned().collect()
}

fn nft(table: &str) -> Change {
    Change::Nft {
        table: table.to_owned(),
    }
}
