use super::*;
use crate::controllers::postgres_cluster::test_support::{FULL, MINIMAL, validated};

fn build(spec: &str) -> Resources {
    let cluster = validated(spec);
    build_resources(&BuildInput {
        cluster: &cluster,
        replicas: cluster.instances,
        protect_primary: true,
        pgherd_image: "registry/pgherd:dev",
        claim_size: None,
    })
    .unwrap()
}

#[test]
fn the_objects_of_a_minimal_cluster() {
    let Resources { account, role, role_binding, config_map, services, budgets, network_policy, stateful_set } =
        build(MINIMAL);
    insta::assert_yaml_snapshot!("account", account);
    insta::assert_yaml_snapshot!("role", role);
    insta::assert_yaml_snapshot!("role_binding", role_binding);
    insta::assert_yaml_snapshot!("config_map", config_map);
    insta::assert_yaml_snapshot!("services", services);
    insta::assert_yaml_snapshot!("budgets", budgets);
    insta::assert_yaml_snapshot!("network_policy", network_policy);
    insta::assert_yaml_snapshot!("stateful_set", stateful_set);
}

#[test]
fn the_objects_of_a_cluster_with_everything() {
    let built = build(FULL);
    insta::assert_yaml_snapshot!("config_map_full", built.config_map);
    insta::assert_yaml_snapshot!("stateful_set_full", built.stateful_set);
}

#[test]
fn the_secrets() {
    let cluster = validated(MINIMAL);
    let data = [("ca.crt".to_owned(), b"certificate".to_vec())].into();
    insta::assert_yaml_snapshot!("secret_app", readable(secrets::build_app_secret(&cluster, "PASSWORD")));
    insta::assert_yaml_snapshot!("secret_ca", readable(secrets::build_ca_secret(&cluster, &data)));
    insta::assert_yaml_snapshot!("secret_tls", readable(secrets::build_tls_secret(&cluster, &data)));
}

/// With text instead of base64, for whoever reads the snapshot.
fn readable(mut secret: k8s_openapi::api::core::v1::Secret) -> k8s_openapi::api::core::v1::Secret {
    let data = secret.data.take().unwrap_or_default();
    let text = data.into_iter().map(|(key, value)| (key, String::from_utf8(value.0).unwrap())).collect();
    secret.string_data = Some(text);
    secret
}

#[test]
fn the_claim_template_keeps_the_size_of_the_live_one() {
    let cluster = validated("{instances: 1, storage: {size: 20Gi}}");
    let live = Quantity("10Gi".into());
    let input = BuildInput {
        cluster: &cluster,
        replicas: 1,
        protect_primary: false,
        pgherd_image: "registry/pgherd:dev",
        claim_size: Some(&live),
    };
    let set = build_resources(&input).unwrap().stateful_set;
    let templates = set.spec.unwrap().volume_claim_templates.unwrap();
    let requests = templates[0].spec.clone().unwrap().resources.unwrap().requests.unwrap();
    assert_eq!(requests["storage"], live);
}

#[test]
fn the_pod_template_does_not_follow_settings_that_agents_read_from_the_config_map() {
    let template = |spec: &str| build(spec).stateful_set.spec.unwrap().template;
    let tuned = "{instances: 5, storage: {size: 20Gi}, postgresql: {parameters: {work_mem: 1MB}}, synchronous: {mode: Required}}";
    assert_eq!(template(MINIMAL), template(tuned));
}

#[test]
fn an_affinity_of_the_users_replaces_the_default() {
    let spec = "{instances: 1, storage: {size: 1Gi}, affinity: {}}";
    let pod = build(spec).stateful_set.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.affinity, Some(k8s_openapi::api::core::v1::Affinity::default()));
}

#[test]
fn everything_is_controlled_by_the_cluster_and_labelled() {
    let built = build(FULL);
    let mut metas = vec![
        built.account.metadata,
        built.role.metadata,
        built.role_binding.metadata,
        built.config_map.metadata,
        built.network_policy.metadata,
        built.stateful_set.metadata,
    ];
    metas.extend(built.services.into_iter().map(|service| service.metadata));
    metas.extend(built.budgets.into_iter().map(|budget| budget.metadata));
    for meta in metas {
        assert!(crate::kubernetes::owner::is_controlled_by(&meta, "11111111-2222-3333-4444-555555555555"), "{meta:?}");
        assert_eq!(meta.labels, Some(labels("shop")), "{meta:?}");
    }
}

/// `minAvailable` of the replicas' budget and of the primary's.
fn available(instances: u32, protect_primary: bool) -> [i32; 2] {
    let cluster = validated(&format!("{{instances: {instances}, storage: {{size: 1Gi}}}}"));
    let budgets = pdb::build_budgets(&cluster, protect_primary);
    let number = |at: usize| match budgets[at].spec.clone().unwrap().min_available.unwrap() {
        k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(number) => number,
        text => panic!("{text:?}"),
    };
    [number(0), number(1)]
}

#[test]
fn a_drain_takes_one_replica_at_a_time_and_the_primary_only_if_it_is_not_protected() {
    assert_eq!(available(1, false), [0, 0]);
    assert_eq!(available(2, true), [0, 1]);
    assert_eq!(available(3, true), [1, 1]);
    assert_eq!(available(5, false), [3, 0]);
}
