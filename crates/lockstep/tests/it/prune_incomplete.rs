//! Sets on this host that have lost files of their own: they take no place of those that can be restored.

use std::fs;

use crate::support::faults::assert_said;
use crate::support::fixture::Fixture;
use crate::support::layout::one_dataset;
use crate::support::lockstep::exit;

#[test]
fn a_set_without_its_own_files_takes_no_place_of_another() {
    let fixture = Fixture::new(one_dataset());
    let text = fixture.configuration("label", true);
    let text = format!("{text}\n[clusters.main.retention]\nlocal = {{ last = 1 }}\n");
    fs::write(fixture.config(), text).expect("the configuration can be written");
    let lockstep = fixture.lockstep();
    let whole = lockstep.backup("label").id;
    // Sets of the same second have no order.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let newest = lockstep.backup("label").id;
    let label = fixture.state.join("clusters/main/sets").join(&newest).join("backup_label");
    let content = fs::read(&label).expect("it can be read");
    for cut in [None, Some(&content[..9])] {
        match cut {
            None => fs::remove_file(&label).expect("it can be removed"),
            Some(cut) => fs::write(&label, cut).expect("it can be written"),
        }
        for more in [&["--dry-run"][..], &[]] {
            let arguments = [&["prune", "--local"][..], more].concat();
            let outcome = lockstep.expect(exit::PROBLEMS, &arguments);
            let left = format!("set {newest} is left: ");
            assert_said(&outcome, &[&left, "backup_label", "to be rid of the set"]);
            assert_eq!(lockstep.sets(), [&*whole, &*newest]);
        }
    }
    fs::write(&label, content).expect("it can be written");
    lockstep.expect(exit::DONE, &["prune", "--local"]);
    assert_eq!(lockstep.sets(), [&*newest]);
}
