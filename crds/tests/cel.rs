//! Every rule of the schemas accepts what it should and rejects what it should, without an API server. `apply.sh` asks a
//! real one about the same fixtures, and about those named `schema-*`, which are a matter of structure.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails")]

use std::{collections::BTreeSet, fs, path::Path};

use kube_cel::Validator;
use pgherd_crds::manifest::{build_published, visit_schemas};
use serde::Deserialize;
use serde_json::Value;

/// A fixture: one object, or its old and its new form.
struct Fixture {
    name: String,
    expected: Option<String>,
    objects: Vec<Value>,
}

fn read_fixtures(kind: &str) -> Vec<Fixture> {
    // Cargo runs a test in its package's folder, wherever the tree was when the test was compiled.
    let folder = Path::new("tests/fixtures").join(kind);
    let mut fixtures: Vec<Fixture> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let first = text.lines().next().unwrap();
            Fixture {
                name: path.file_stem().unwrap().to_string_lossy().into_owned(),
                expected: first.strip_prefix("# expect: ").map(str::to_owned),
                objects: yaml_serde::Deserializer::from_str(&text).map(|d| Value::deserialize(d).unwrap()).collect(),
            }
        })
        .collect();
    fixtures.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!fixtures.is_empty());
    fixtures
}

fn schema_of(kind: &str) -> Value {
    let definition = pgherd_crds::all().into_iter().find(|d| d.spec.names.kind == kind).unwrap();
    build_published(&definition).unwrap().pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap().clone()
}

/// The rules that the last object of the fixture breaks: (rule, message).
fn broken_rules(fixture: &Fixture) -> Vec<(String, String)> {
    let (new, old) = match fixture.objects.as_slice() {
        [new] => (new, None),
        [old, new] => (new, Some(old)),
        other => panic!("{}: {} documents", fixture.name, other.len()),
    };
    let schema = schema_of(new["kind"].as_str().unwrap());
    let errors = Validator::new().validate(&schema, new, old).err().into_iter().flatten();
    errors.map(|error| (error.rule, error.message)).collect()
}

#[test]
fn good_objects_are_accepted() {
    for fixture in read_fixtures("accept") {
        assert_eq!(broken_rules(&fixture), [], "{}", fixture.name);
    }
}

#[test]
fn bad_objects_are_rejected_with_the_right_words() {
    for fixture in read_fixtures("reject").iter().filter(|f| !f.name.starts_with("schema-")) {
        let expected = fixture.expected.as_deref().unwrap_or_else(|| panic!("{}: no expectation", fixture.name));
        let broken = broken_rules(fixture);
        assert!(broken.iter().any(|(_, message)| message.contains(expected)), "{}: {broken:?}", fixture.name);
    }
}

#[test]
fn the_old_form_of_an_update_is_accepted() {
    for mut fixture in read_fixtures("reject").into_iter().chain(read_fixtures("accept")) {
        if fixture.objects.len() == 2 {
            fixture.objects.truncate(1);
            assert_eq!(broken_rules(&fixture), [], "{}", fixture.name);
        }
    }
}

#[test]
fn every_rule_is_broken_by_a_fixture() {
    let broken: BTreeSet<String> =
        read_fixtures("reject").iter().flat_map(broken_rules).map(|(rule, _)| rule).collect();
    let mut rules = BTreeSet::new();
    for definition in pgherd_crds::all() {
        visit_schemas(&mut schema_of(&definition.spec.names.kind), &mut |node| {
            for rule in node.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                rules.insert(rule["rule"].as_str().unwrap().to_owned());
            }
        });
    }
    let unbroken: Vec<_> = rules.difference(&broken).collect();
    assert!(rules.len() > 20, "the derive macro emitted {} rules only", rules.len());
    assert!(unbroken.is_empty(), "no fixture breaks {unbroken:#?}");
}
