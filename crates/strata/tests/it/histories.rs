//! Random histories of images, folded at every point and after merges, compared with a naive model.

use crate::support::*;
use strata::delta::{chain, descriptor_path};
use strata::fold::merge;
use strata::lease::HELD;

fn history(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let repository = repository(memory_store());
    let (mut image, mut images) = (Image::new(), Vec::new());
    let count = random.usize(2..9);
    for number in 0..count {
        let steps = dense_steps(&mut random);
        let base = number.checked_sub(1).map(|base| base.to_string());
        let id = number.to_string();
        write_delta(&repository, &mut image, &steps, &id, base.as_deref(), &small()).unwrap();
        images.push(image.clone());
    }
    // Ids that still exist, ascending.
    let mut left: Vec<usize> = (0..count).collect();
    loop {
        for (place, &number) in left.iter().enumerate() {
            let full = chain(&repository, IMAGE, &number.to_string(), None).unwrap();
            assert_eq!(full.len(), place + 1);
            let folded = restored(&repository, &full, &Image::new()).unwrap();
            assert_eq!(folded, images[number], "seed {seed}: full to {number} of {left:?}");
            let from = left[random.usize(..=place)];
            let after = from.to_string();
            let rest = chain(&repository, IMAGE, &number.to_string(), Some(&after)).unwrap();
            if !rest.is_empty() {
                let folded = restored(&repository, &rest, &images[from]).unwrap();
                assert_eq!(folded, images[number], "seed {seed}: {from} to {number} of {left:?}");
            }
        }
        if left.len() == 1 {
            return;
        }
        // Two or three neighbours become one.
        let size = random.usize(2..=left.len().min(3));
        let first = random.usize(..=left.len() - size);
        let newest = chain(&repository, IMAGE, &left[first + size - 1].to_string(), None).unwrap();
        merge(&repository, &newest[first..], &Model, 1 << 20, &small_index(), HELD).unwrap();
        for number in left.drain(first..first + size - 1) {
            let path = descriptor_path(&repository, IMAGE, &number.to_string()).unwrap();
            repository.store().delete(&path).unwrap();
        }
    }
}

#[test]
fn folds_and_merges_are_as_replaying_everything() {
    let rounds = std::env::var("STRATA_ROUNDS").ok().and_then(|text| text.parse().ok());
    for seed in 0..rounds.unwrap_or(100) {
        history(seed);
    }
}
