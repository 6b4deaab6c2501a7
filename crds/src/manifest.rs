//! The manifests beside this crate, rendered from the types. No file is read or written here: `crdgen` does that.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

/// The most bytes of compact JSON a manifest may have: plain `kubectl apply` keeps a second copy of it in an
/// annotation, and an object's annotations end at 262,144 bytes.
pub const MAX_BYTES: usize = 200_000;

/// First line of every manifest.
const HEADER: &str = "# Generated from crds/src by `make crds`. Do not edit.\n";

/// Keys under which a schema holds one schema.
const ONE: [&str; 3] = ["items", "additionalProperties", "not"];
/// Keys under which a schema holds a list of schemas.
const MANY: [&str; 3] = ["allOf", "anyOf", "oneOf"];

/// A manifest could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The definition is not representable as JSON.
    #[error("failed to represent the definition of {name} as JSON")]
    Represent {
        /// The definition's name.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The definition is not representable as YAML.
    #[error("failed to write the definition of {name} as YAML")]
    Write {
        /// The definition's name.
        name: String,
        /// Why.
        #[source]
        source: yaml_serde::Error,
    },
}

/// The definition's name, such as `postgresclusters.pgherd.dev`.
#[must_use]
pub fn definition_name(definition: &CustomResourceDefinition) -> String {
    format!("{}.{}", definition.spec.names.plural, definition.spec.group)
}

/// The manifest's file name, such as `pgherd.dev_postgresclusters.yaml`.
#[must_use]
pub fn file_name(definition: &CustomResourceDefinition) -> String {
    format!("{}_{}.yaml", definition.spec.group, definition.spec.names.plural)
}

/// The definition as it is published: without schema defaults, which a GitOps tool shows as drift.
///
/// # Errors
/// [`ManifestError::Represent`].
pub fn build_published(definition: &CustomResourceDefinition) -> Result<Value, ManifestError> {
    let name = || definition_name(definition);
    let mut value =
        serde_json::to_value(definition).map_err(|source| ManifestError::Represent { name: name(), source })?;
    for version in value.pointer_mut("/spec/versions").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") else { continue };
        visit_schemas(schema, &mut |node| {
            node.remove("default");
            // Kubernetes knows int32 and int64, and warns of any other format; the bounds stay as `minimum`.
            if node.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                node.insert("format".to_owned(), Value::from("int64"));
            }
        });
    }
    Ok(value)
}

/// The manifest as YAML.
///
/// # Errors
/// [`ManifestError`].
pub fn render_manifest(definition: &CustomResourceDefinition) -> Result<String, ManifestError> {
    let yaml = yaml_serde::to_string(&build_published(definition)?)
        .map_err(|source| ManifestError::Write { name: definition_name(definition), source })?;
    let lines: Vec<String> = yaml.lines().map(quote_booleans).collect();
    Ok(format!("{HEADER}{}\n", lines.join("\n")))
}

/// The string `Off` must be quoted: kubectl reads YAML 1.1, where it is a boolean, while YAML 1.2 writes it bare.
fn quote_booleans(line: &str) -> String {
    for separator in ["- ", ": "] {
        if let Some((before, word)) = line.rsplit_once(separator)
            && !before.trim_start().contains(' ')
            && ["y", "n", "yes", "no", "on", "off"].contains(&word.to_ascii_lowercase().as_str())
        {
            return format!("{before}{separator}'{word}'");
        }
    }
    line.to_owned()
}

/// Calls `visit` with a schema and every schema inside it, but never with a map of properties, in which `default` or
/// `description` would be the name of a field.
pub fn visit_schemas(schema: &mut Value, visit: &mut dyn FnMut(&mut serde_json::Map<String, Value>)) {
    let Some(node) = schema.as_object_mut() else { return };
    visit(node);
    for inner in node.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(|p| p.values_mut()) {
        visit_schemas(inner, visit);
    }
    for key in ONE {
        if let Some(inner) = node.get_mut(key) {
            visit_schemas(inner, visit);
        }
    }
    for key in MANY {
        for inner in node.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            visit_schemas(inner, visit);
        }
    }
}
