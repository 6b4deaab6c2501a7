//! The manifests in this folder are what the types say, and keep their promises: small, without defaults, with rules.

use std::fs;

use pgherd_crds::manifest::{MAX_BYTES, build_published, definition_name, file_name, render_manifest, visit_schemas};
use serde_json::Value;

#[test]
fn manifests_are_current() {
    for definition in pgherd_crds::all() {
        // Cargo runs a test in its package's folder, wherever the tree was when the test was compiled.
        let path = file_name(&definition);
        let committed = fs::read_to_string(&path).unwrap_or_default();
        let current = render_manifest(&definition).unwrap();
        assert!(committed == current, "{path} is not what the types say: run `make crds`");
    }
}

#[test]
fn plain_kubectl_apply_has_room_for_its_copy() {
    for definition in pgherd_crds::all() {
        let bytes = serde_json::to_string(&build_published(&definition).unwrap()).unwrap().len();
        assert!(bytes < MAX_BYTES, "{}: {bytes} bytes of compact JSON", definition_name(&definition));
    }
}

#[test]
fn no_field_has_a_default_in_the_schema() {
    for definition in pgherd_crds::all() {
        let mut published = build_published(&definition).unwrap();
        let schema = published.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").unwrap();
        visit_schemas(schema, &mut |node| assert!(!node.contains_key("default"), "{node:?}"));
    }
}

#[test]
fn only_formats_that_kubernetes_knows_are_used() {
    for definition in pgherd_crds::all() {
        let mut published = build_published(&definition).unwrap();
        let schema = published.pointer_mut("/spec/versions/0/schema/openAPIV3Schema").unwrap();
        visit_schemas(schema, &mut |node| {
            if let Some(format) = node.get("format").and_then(Value::as_str) {
                assert!(["int32", "int64", "double", "date-time"].contains(&format), "{format}: {node:?}");
            }
        });
    }
}

#[test]
fn every_kind_has_its_category_short_name_and_status() {
    for definition in pgherd_crds::all() {
        let names = &definition.spec.names;
        assert_eq!(names.categories.as_deref(), Some(&["pgherd".to_owned()][..]));
        assert!(names.short_names.as_ref().is_some_and(|short| !short.is_empty()));
        assert!(definition.spec.versions.iter().all(|v| v.subresources.as_ref().is_some_and(|s| s.status.is_some())));
    }
}

#[test]
fn words_that_old_yaml_takes_for_booleans_are_quoted() {
    let text: String = pgherd_crds::all().iter().map(|definition| render_manifest(definition).unwrap()).collect();
    assert!(text.contains("- 'Off'\n"), "the mode Off would reach Kubernetes as false");
    assert!(!text.contains("- Off\n"));
}
