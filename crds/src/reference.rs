//! The reference for users, docs/api.md, rendered from the published schemas. No file is read or written here.

use std::fmt::Write;

use serde_json::Value;

use crate::manifest::{ManifestError, build_published};

const HEADER: &str = "<!-- Generated from crds/src by `make crds`. Do not edit. -->
# The API: group `pgherd.dev`, version `v1alpha1`

A field without \"required\" may be left out; what is in effect then stands in its description, and in the status.
`kubectl explain postgrescluster.spec` shows the same.
";

/// Renders the reference of all kinds as Markdown.
///
/// # Errors
/// [`ManifestError::Represent`].
pub fn render_reference() -> Result<String, ManifestError> {
    let mut out = HEADER.to_owned();
    for definition in crate::all() {
        let published = build_published(&definition)?;
        let names = &definition.spec.names;
        let short = names.short_names.as_deref().unwrap_or_default().join(", ");
        push(&mut out, format_args!("\n## {} (`{short}`)\n", names.kind));
        let Some(schema) = published.pointer("/spec/versions/0/schema/openAPIV3Schema") else { continue };
        for part in ["spec", "status"] {
            let Some(node) = schema.get("properties").and_then(|p| p.get(part)) else { continue };
            push(&mut out, format_args!("\n### {part}\n\n{}\n\n", description(node)));
            out.push_str("| field | type | |\n|---|---|---|\n");
            push_fields(&mut out, node, part, "");
            push_rules(&mut out, node);
        }
    }
    Ok(out)
}

/// One row a field, those inside it after it.
fn push_fields(out: &mut String, node: &Value, part: &str, path: &str) {
    let required: Vec<&str> =
        node.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in node.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let must = if part == "spec" && required.contains(&name.as_str()) { ", required" } else { "" };
        push(out, format_args!("| `{path}` | {}{must} | {} |\n", type_of(field), description(field)));
        let embedded = ["affinity", "resources", "tolerations", "topologySpreadConstraints"].contains(&name.as_str());
        match field.get("items") {
            _ if embedded => {}
            Some(items) => push_fields(out, items, part, &format!("{path}[]")),
            None => push_fields(out, field, part, &path),
        }
    }
}

/// The rules of the whole part; those of a field are in its own description.
fn push_rules(out: &mut String, node: &Value) {
    let rules = node.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten();
    let messages: Vec<&str> = rules.filter_map(|rule| rule.get("message").and_then(Value::as_str)).collect();
    if !messages.is_empty() {
        out.push_str("\nBesides:\n\n");
    }
    for message in messages {
        push(out, format_args!("- {message}\n"));
    }
}

fn type_of(field: &Value) -> String {
    if let Some(values) = field.get("enum").and_then(Value::as_array) {
        let names: Vec<String> = values.iter().filter_map(Value::as_str).map(|name| format!("`{name}`")).collect();
        return names.join(" or ");
    }
    let name = field.get("type").and_then(Value::as_str).unwrap_or("object");
    let bound = |key: &str| field.get(key).and_then(Value::as_f64);
    match (name, field.get("items"), field.get("additionalProperties")) {
        ("array", Some(items), _) => format!("list of {}", type_of(items)),
        ("object", _, Some(values)) => format!("map to {}", type_of(values)),
        _ => match (bound("minimum"), bound("maximum")) {
            (Some(low), Some(high)) => format!("{name} {low} to {high}"),
            (Some(low), None) if low > 0.0 => format!("{name} from {low}"),
            _ => name.to_owned(),
        },
    }
}

/// On one line, with what would break a table escaped.
fn description(node: &Value) -> String {
    let text = node.get("description").and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}
