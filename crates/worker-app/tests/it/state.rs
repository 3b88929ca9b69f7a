//! The state directory: one holder, whole status files, orders that are taken once.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use worker_app::state::{Inbox, Lock, Order, give, holder, read_status, write_status};
use worker_app::stop::Code;

use super::display::busy;

#[test]
fn f078_a_second_holder_is_told_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let lock = Lock::take(dir.path()).unwrap();
    assert_eq!(holder(dir.path()), Some(Some(std::process::id())));
    let stop = Lock::take(dir.path()).unwrap_err();
    assert_eq!(stop.code, Code::Instance);
    assert!(stop.message.contains(&format!("pid {}", std::process::id())));
    drop(lock);
    assert_eq!(holder(dir.path()), None);
    Lock::take(dir.path()).unwrap();
}

#[test]
fn f079_a_pid_left_in_the_file_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("lock"), "1").unwrap();
    assert_eq!(holder(dir.path()), None);
    Lock::take(dir.path()).unwrap();
}

#[test]
fn f063_a_state_directory_that_cannot_be_made_is_73() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let stop = Lock::take(&file.join("state")).unwrap_err();
    assert_eq!(stop.code, Code::StateDir);
    assert!(stop.hint.unwrap().contains("state_dir"));
}

#[test]
fn the_state_directory_is_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("deep/state");
    let _lock = Lock::take(&state).unwrap();
    assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_status_comes_back_as_it_went_and_nothing_is_left_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    write_status(dir.path(), &busy()).unwrap();
    write_status(dir.path(), &busy()).unwrap();
    assert_eq!(read_status(dir.path()).unwrap(), busy());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_status_that_is_none_is_73_and_not_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    for text in ["", "{", "[]", "{\"pid\":-1}"] {
        std::fs::write(dir.path().join("status.json"), text).unwrap();
        assert_eq!(read_status(dir.path()).unwrap_err().code, Code::StateDir, "{text}");
    }
}

#[test]
fn without_a_worker_an_order_says_so_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let stop = give(dir.path(), Order::Resume).unwrap_err();
    assert_eq!(stop.code, Code::Instance);
    assert!(stop.message.starts_with("no worker runs"));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn orders_are_taken_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let _lock = Lock::take(dir.path()).unwrap();
    let inbox = Inbox::open(dir.path()).unwrap();
    let is_over = AtomicBool::new(false);
    let taken = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut taken = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                taken.extend(inbox.take());
                std::thread::yield_now();
            }
            taken
        });
        let pause = Order::Pause {
            for_s: Some(7200),
            now: false,
        };
        for order in [pause, Order::Resume, Order::Finish] {
            assert_eq!(give(dir.path(), order).unwrap().pid, Some(std::process::id()));
        }
        is_over.store(true, Ordering::Relaxed);
        worker.join().unwrap()
    });
    let pause = Order::Pause {
        for_s: Some(7200),
        now: false,
    };
    assert_eq!(taken, [Ok(pause), Ok(Order::Resume), Ok(Order::Finish)]);
}

#[test]
fn what_is_no_order_is_removed_and_told_and_old_orders_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control");
    std::fs::create_dir(&control).unwrap();
    std::fs::write(control.join("0-old.json"), "{\"order\":\"stop\"}").unwrap();
    let inbox = Inbox::open(dir.path()).unwrap();
    assert!(
        inbox.take().is_empty(),
        "an order to an earlier worker is not for this one"
    );
    for (name, text) in [
        ("1.json", "{\"order\":\"explode\"}"),
        ("2.json", "not json"),
        ("3.json", "{\"order\":\"pause\",\"for_s\":-5}"),
        ("4.json", "[]"),
        ("5.json", &"x".repeat(10_000)),
        ("notes.txt", "left alone"),
    ] {
        std::fs::write(control.join(name), text).unwrap();
    }
    std::os::unix::fs::symlink("/etc/hostname", control.join("6.json")).unwrap();
    let taken = inbox.take();
    assert_eq!(taken.len(), 6);
    assert!(taken.iter().all(Result::is_err), "{taken:?}");
    assert!(inbox.take().is_empty());
    assert!(control.join("notes.txt").exists());
}
