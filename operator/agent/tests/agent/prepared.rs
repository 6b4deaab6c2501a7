//! Transactions that are prepared in a copy, recovered into a cluster that has no place for any by its configuration.

use bytes::Bytes;
use pgherd_agent::{postgres::sql::Session, register_store::MemoryRegister};
use pgherd_core::instance::{Bootstrap, Phase, RecoveryTarget};

use crate::support::{
    Cluster,
    copies::copy_as_tar,
    minio::{self, Minio},
    takeover::{bring_up, first_register, session, wait_for, wait_write},
};

const LEFT: &str = "SELECT count(*)::text FROM pg_prepared_xacts";

async fn ask(session: &Session, sql: &str) -> String {
    session.query(sql, &[]).await.unwrap()[0].get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_with_a_prepared_transaction_is_recovered_without_the_setting() {
    if minio::ran_as_postgres("prepared::a_copy_with_a_prepared_transaction_is_recovered_without_the_setting") {
        return;
    }
    let mut source = Cluster::new(MemoryRegister::new(first_register()), 1);
    source.register.edit(|register| register.quorum.acks = 0);
    source.config.parameters.insert("max_prepared_transactions".into(), "7".into());
    let minio = Minio::start(source.root.path()).await;
    let old = bring_up(&source, 1).await.pop().unwrap();
    wait_write(&old, "CREATE TABLE public.t (id int)").await;
    let tar = copy_as_tar(&old, source.root.path(), async |_| {
        let prepare = "BEGIN; INSERT INTO public.t VALUES (1); PREPARE TRANSACTION 'left'";
        session(&old, "app").await.execute(prepare).await.unwrap();
    })
    .await;
    minio.store().await.put("old.tar", Bytes::from(tar)).await.unwrap();
    old.terminate().await;

    let mut target = Cluster::new(MemoryRegister::new(first_register()), 1);
    target.register.edit(|register| register.quorum.acks = 0);
    let (store, key) = (minio.config.clone(), "old.tar".to_owned());
    target.config.bootstrap = Bootstrap::Import { store, key, target: RecoveryTarget::Latest };
    let new = bring_up(&target, 1).await.pop().unwrap();
    wait_for(&new, "open", |status| status.phase == Phase::Primary).await;
    let open = session(&new, "app").await;
    assert_eq!(ask(&open, LEFT).await, "1");
    open.execute("COMMIT PREPARED 'left'").await.unwrap();
    assert_eq!(ask(&open, "SELECT count(*)::text FROM public.t").await, "1");
    new.terminate().await;
}
