//! What is sealed comes back, whole and in runs; what was changed, moved, cut off or appended does not.

use proptest::prelude::*;

use super::{keys::tests::IDENTITY, *};

fn identity() -> Identity {
    IDENTITY.parse().unwrap()
}

/// Another pair, by age-keygen.
fn stranger() -> Identity {
    "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33".parse().unwrap()
}

fn sealed(plain: &[u8]) -> Vec<u8> {
    seal(&[identity().recipient()], plain).unwrap()
}

fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn each_recipient_opens_it_and_nobody_else() {
    let (mine, other) = (identity(), stranger());
    let file = seal(&[other.recipient(), mine.recipient()], b"marker").unwrap();
    for identities in [vec![mine], vec![identity(), stranger()], vec![stranger()]] {
        assert_eq!(open(&identities, file.clone()).unwrap(), b"marker");
    }
    let file = sealed(b"marker");
    assert_eq!(open(&[other], file.clone()), Err(AgeError::NoMatch));
    assert_eq!(open(&[], file.clone()), Err(AgeError::NoMatch));
    assert_eq!(seal(&[], b"x"), Err(AgeError::Recipients));
    let many = vec![identity().recipient(); MAX_RECIPIENTS];
    assert_eq!(open(&[identity()], seal(&many, b"x").unwrap()).unwrap(), b"x");
    assert_eq!(seal(&[many.as_slice(), &many].concat(), b"x"), Err(AgeError::Recipients));
    assert!(!file.windows(6).any(|window| window == b"marker"));
    assert_ne!(file, sealed(b"marker"), "no two files share a key");
}

#[test]
fn every_length_around_a_chunk_comes_back_and_has_the_size_that_was_foretold() {
    for chunks in [0, 1, 2] {
        for around in [-1i64, 0, 1] {
            let Ok(length) = usize::try_from(chunks * CHUNK_BYTES as i64 + around) else { continue };
            let (plain, file) = (noise(length), sealed(&noise(length)));
            let (_, start) = Opener::begin(&[identity()], &file).unwrap();
            assert_eq!((file.len() - start) as u64, sealed_bytes(length as u64), "{length}");
            assert!(open(&[identity()], file).unwrap() == plain, "{length}");
        }
    }
}

#[test]
fn what_was_cut_off_appended_or_moved_is_noticed() {
    let plain = noise(2 * CHUNK_BYTES + 5);
    let file = sealed(&plain);
    let start = Opener::begin(&[identity()], &file).unwrap().1;
    let fails = |what: &str, file: Vec<u8>| {
        assert!(open(&[identity()], file).is_err(), "{what}");
    };
    for cut in [start - 1, start, start + 5, start + 2 * SEALED_CHUNK_BYTES, file.len() - 1] {
        fails("cut off", file[..cut].to_vec());
    }
    fails("appended", [file.as_slice(), b"x"].concat());
    fails("two files", [file.as_slice(), &file].concat());
    let mut moved = file.clone();
    moved[start..start + 2 * SEALED_CHUNK_BYTES].rotate_left(SEALED_CHUNK_BYTES);
    fails("moved", moved);
    let full = sealed(&noise(2 * CHUNK_BYTES));
    fails("the last of two full chunks is gone", full[..full.len() - SEALED_CHUNK_BYTES].to_vec());
    fails("nothing", Vec::new());
    fails("not age", b"\x28\xb5\x2f\xfd".to_vec());
}

#[test]
fn every_bit_of_a_small_file_matters() {
    let file = sealed(b"a row");
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut flipped = file.clone();
            flipped[at] ^= 1 << bit;
            assert!(open(&[identity()], flipped).is_err(), "bit {bit} of byte {at}");
        }
    }
}

/// Cases that the format's own test kit (C2SP CCTV) has; a header that is not ours must be judged as age does.
#[test]
fn a_header_is_read_as_strictly_as_age_reads_it() {
    let text = sealed(b"x");
    let end = text.windows(5).position(|window| window == b"\n--- ").unwrap();
    let stanza = std::str::from_utf8(&text[..end]).unwrap().strip_prefix("age-encryption.org/v1\n").unwrap().to_owned();
    let rebuilt = |header: &str| open(&[identity()], [header.as_bytes(), &text[end..]].concat());
    let good = format!("age-encryption.org/v1\n{stanza}");
    assert_eq!(rebuilt(&good).unwrap(), b"x");
    let greased = format!("age-encryption.org/v1\n-> grease a b\n\n{stanza}");
    assert_eq!(
        rebuilt(&greased),
        Err(AgeError::Mac),
        "an unknown recipient is passed over; the MAC tells that it is new"
    );
    for (what, header) in [
        ("another version", good.replace("/v1", "/v2")),
        ("no recipient", "age-encryption.org/v1".to_owned()),
        ("carriage returns", good.replace('\n', "\r\n")),
        ("one more argument", good.replacen("X25519 ", "X25519 more ", 1)),
        ("an empty argument", good.replacen("X25519 ", "X25519  ", 1)),
        ("padding", format!("{good}=")),
        ("a passphrase beside", format!("age-encryption.org/v1\n-> scrypt c2FsdA 10\n\n{stanza}")),
        ("a share of low order", {
            let share = stanza.split([' ', '\n']).nth(2).unwrap();
            good.replace(share, &"A".repeat(43))
        }),
    ] {
        assert!(matches!(rebuilt(&header), Err(AgeError::Header(_))), "{what}: {:?}", rebuilt(&header));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_run_of_chunks_opens_without_the_rest(length in 1usize..300_000, a: prop::sample::Index, b: prop::sample::Index) {
        let (plain, file) = (noise(length), sealed(&noise(length)));
        let (opener, start) = Opener::begin(&[identity()], &file).unwrap();
        let count = length.div_ceil(CHUNK_BYTES);
        let (first, last) = (a.index(count).min(b.index(count)), a.index(count).max(b.index(count)));
        let from = start + first * SEALED_CHUNK_BYTES;
        let to = file.len().min(start + (last + 1) * SEALED_CHUNK_BYTES);
        let ends = last + 1 == count;
        let opened = opener.open(first as u64, ends, file[from..to].to_vec()).unwrap();
        prop_assert!(opened == plain[first * CHUNK_BYTES..length.min((last + 1) * CHUNK_BYTES)]);
        // The place and the end are part of what is proven.
        prop_assert!(opener.open(first as u64 + 1, ends, file[from..to].to_vec()).is_err());
        prop_assert!(opener.open(first as u64, !ends, file[from..to].to_vec()).is_err());
    }

    #[test]
    fn whatever_the_pieces_the_stream_is_the_same_file(sizes in prop::collection::vec(0usize..150_000, 0..6)) {
        let plain = noise(sizes.iter().sum());
        let (mut sealer, mut file) = Sealer::begin(&[identity().recipient()]).unwrap();
        let mut rest = plain.as_slice();
        for size in sizes {
            let (mut piece, later) = rest.split_at(size);
            rest = later;
            while let Some(chunk) = sealer.push(&mut piece).unwrap() {
                file.extend_from_slice(chunk);
            }
        }
        file.extend_from_slice(sealer.finish().unwrap());
        prop_assert!(open(&[identity()], file).unwrap() == plain);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), text in "(-> [X25519 a-zA-Z0-9+/\n]{0,80}|--- .{0,50}\n){0,6}") {
        prop_assert!(open(&[identity()], bytes).is_err());
        let file = format!("age-encryption.org/v1\n{text}").into_bytes();
        prop_assert!(open(&[identity()], file).is_err());
    }
}
