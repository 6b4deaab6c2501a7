//! Partitions that are narrower than a pulled cable: a pod is cut from some addresses, in both directions or one, by packet
//! filters in its own network namespace. Packets vanish without a word, and sessions that are open feel it too.

use crate::{Result, containers::Container, kubectl::run};

/// The table of filters; nobody else uses this name.
const TABLE: &str = "inet e2e_faults";
/// The API server's address as pods know it.
pub const API_ADDRESS: &str = "10.96.0.1";

/// Which packets vanish, as the pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Those to the pod.
    In,
    /// Those from the pod.
    Out,
    /// Both.
    Both,
}

/// Renders the filters. `share` is how many of a hundred packets vanish.
fn render(addresses: &[String], direction: Direction, share: u32) -> String {
    let set = addresses.join(", ");
    let some = if share >= 100 { String::new() } else { format!("numgen random mod 100 < {share} ") };
    let rule = |applies: bool, side: &str| {
        if applies { format!("ip {side} {{ {set} }} {some}drop") } else { String::new() }
    };
    let input = rule(direction != Direction::Out, "saddr");
    let output = rule(direction != Direction::In, "daddr");
    format!(
        "table {TABLE} {{\n  chain input {{\n    type filter hook input priority -300; policy accept;\n    {input}\n  }}\n  \
         chain output {{\n    type filter hook output priority -300; policy accept;\n    {output}\n  }}\n}}\n"
    )
}

/// Cuts a pod from addresses until [`heal`].
///
/// # Errors
/// nft failed; nothing is cut then.
pub async fn cut(container: &Container, addresses: &[String], direction: Direction) -> Result<()> {
    lose(container, addresses, direction, 100).await
}

/// Lets a share of packets vanish, in percent.
///
/// # Errors
/// As [`cut`].
pub async fn lose(container: &Container, addresses: &[String], direction: Direction, percent: u32) -> Result<()> {
    if addresses.is_empty() {
        return Err(format!("{} is to be cut from nobody", container.pod).into());
    }
    heal(container).await;
    let net = format!("--net=/proc/{}/ns/net", container.sandbox);
    run("nsenter", &[&net, "nft", "-f", "-"], Some(&render(addresses, direction, percent))).await.map(drop)
}

/// Takes all filters of a pod away. Harmless if there are none, or if the pod is gone.
pub async fn heal(container: &Container) {
    let net = format!("--net=/proc/{}/ns/net", container.sandbox);
    let table = TABLE.split(' ').collect::<Vec<_>>();
    drop(run("nsenter", &[&[net.as_str(), "nft", "delete", "table"], &table[..]].concat(), None).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_has_its_rule() {
        let to = ["10.244.1.2".to_string(), "10.244.2.3".to_string()];
        let both = render(&to, Direction::Both, 100);
        assert!(both.contains("ip saddr { 10.244.1.2, 10.244.2.3 } drop"));
        assert!(both.contains("ip daddr { 10.244.1.2, 10.244.2.3 } drop"));
        assert!(!render(&to, Direction::In, 100).contains("daddr"));
        assert!(!render(&to, Direction::Out, 100).contains("saddr"));
        assert!(render(&to, Direction::Out, 5).contains("numgen random mod 100 < 5 drop"));
    }
}
