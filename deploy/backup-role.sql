\getenv password BACKUP_PASSWORD
CREATE ROLE ovia_backup LOGIN PASSWORD :'password' BYPASSRLS;
GRANT pg_read_all_data TO ovia_backup;
GRANT EXECUTE ON FUNCTION pg_control_system() TO ovia_backup;
