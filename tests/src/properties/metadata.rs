//! Damage to a node of the metadata is noticed when it is used, and nothing is built upon it.

use super::*;

/// A volume whose trees nobody has read yet, and a change to the node of its mappings.
fn damaged(options: &OpenOptions, change: impl FnOnce(&mut Block, Uuid)) -> Volume {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    volume.close().unwrap();
    let superblock = superblock(&disks);
    let store = Store::new(disks.metadata(), superblock.pool, 64);
    let node = superblock.volumes[0].mapping.base.node.unwrap();
    let mut block = store.read_raw(node.block).unwrap();
    change(&mut block, superblock.pool);
    store.write_raw(&block).unwrap();
    disks.open(options).unwrap()
}

/// One bit of a node flips. The mapping that is asked for is none of those that changed, so nothing else would tell.
pub fn a_flipped_bit_in_a_node_is_noticed_by_whoever_reads_it(options: &OpenOptions) {
    let volume = damaged(options, |block, _| block.payload[5 * 12] ^= 1);
    assert!(read(&volume, 0).is_err(), "a node with a flipped bit was believed");
    assert!(volume.is_read_only(), "the volume goes on with damaged mappings");
    assert!(try_write(&volume, 1, 9, false).is_err(), "a write over damaged mappings");
}

/// An intact node stands where another version of it belongs, as after a write that the device lost.
pub fn an_intact_node_that_its_parent_does_not_name_is_refused(options: &OpenOptions) {
    let volume = damaged(options, |block, pool| {
        // LBNs 0 and 1 change places.
        let (first, second) = block.payload.split_at_mut(12);
        first.swap_with_slice(&mut second[..12]);
        block.seal(pool);
    });
    match read(&volume, 0) {
        Ok(found) => {
            assert!(found == block(1, 4096), "another version of a node was believed: other bytes were read");
            panic!("another version of a node was believed");
        }
        Err(_) => assert!(volume.is_read_only(), "the volume goes on with mappings of another time"),
    }
}
