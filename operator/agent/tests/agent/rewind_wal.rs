//! pg_rewind reads the target's WAL back to the last checkpoint that both share; what the target has removed comes from the archive.

use std::fs;

use pgherd_agent::{actions::seal::seal, postgres::binaries::Binaries, register_store::MemoryRegister};
use pgherd_core::register::Term;

use crate::support::{
    Cluster,
    archive::CLIENT,
    minio::Minio,
    programs::ran_with_rewind,
    takeover::{bring_up, claim, first_register, session, streams, wait_for, wait_write, wake},
};

/// pg_rewind, but before it runs its target has removed all of its WAL but the newest segment.
fn write_rewind() -> String {
    format!(
        "#!/bin/sh\nfor a in \"$@\"; do case $a in --target-pgdata=*) d=${{a#*=}};; esac; done\n\
         cd \"$d/pg_wal\" || exit 1\n\
         for n in $(ls archive_status | sed -n 's/^\\([0-9A-F]\\{{24\\}}\\)[.]done$/\\1/p'); do rm -fv $n; done >../../../removed\n\
         cd /\nexec {} \"$@\"\n",
        Binaries::observe().unwrap().program("pg_rewind").display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_takes_from_the_archive_what_its_target_has_removed() {
    const NAME: &str = "rewind_wal::a_rewind_takes_from_the_archive_what_its_target_has_removed";
    if ran_with_rewind(NAME, &write_rewind()) {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    let minio = Minio::start(cluster.root.path()).await;
    cluster.stand_in(CLIENT);
    cluster.config.store = Some(minio.config.clone());
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());
    wait_write(&first, "CREATE TABLE public.t (id int)").await;

    // The last checkpoint that both share lies three segments before the fork, and all of them are archived.
    let open = session(&first, "app").await;
    open.execute("CHECKPOINT").await.unwrap();
    for _ in 0..3 {
        open.execute("INSERT INTO public.t SELECT generate_series(1, 1000)").await.unwrap();
        open.execute("SELECT pg_switch_wal()").await.unwrap();
    }
    wait_for(&first, "archived", |status| {
        status.archive.last_archived_lsn.is_some_and(|lsn| lsn.0 + (16 << 20) > status.received_lsn.0)
    })
    .await;
    seal(&second.agent, Term(2)).await.unwrap();
    let lost = "SET synchronous_commit = local; INSERT INTO public.t SELECT generate_series(1, 1000)";
    open.execute(lost).await.unwrap();
    cluster.register.edit(|register| register.seal_term = Term(2));
    wake(&[&first, &second]).await;
    wait_for(&first, "stopped as primary", |status| !status.is_primary).await;
    claim(&cluster, &second, &[], 2, 0).await;
    wait_for(&second, "primary", |status| status.is_primary).await;

    let back = wait_for(&first, "a replica", streams).await;
    let removed = fs::read_to_string(first.agent.layout.pgdata.join("../../removed")).unwrap();
    assert!(removed.lines().count() >= 3, "{removed}");
    let source = back.source.unwrap();
    assert_eq!(source.source, "rewind", "{}", source.reason);
    first.terminate().await;
    second.terminate().await;
}
